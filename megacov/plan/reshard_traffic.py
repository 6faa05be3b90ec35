"""Bytes, messages and memory of a push from shard to shard."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from math import prod

from megacov.plan.reshard import ReshardPlan

_BUFFERS = 2  # one is packed or unpacked while another is under way


@dataclass(frozen=True)
class Traffic:
    """What a push moves.

    received: bytes that a rollout rank receives, of the one with most.
    sent: bytes that a trainer rank sends, of the one with most.
    senders: number of trainer ranks that send anything.
    peers: number of trainer ranks from which a rollout rank receives, of the one with most.
    messages: number of messages in all; more, if their order leaves some of them small.
    sender_staging, receiver_staging: bytes of the buffers of a rank, beside the weights themselves.
    """

    received: int
    sent: int
    senders: int
    peers: int
    messages: int
    sender_staging: int
    receiver_staging: int


def push_traffic(plan: ReshardPlan, *, value_bytes: int, bucket_bytes: int) -> Traffic:
    """Add up what a plan moves.

    Args:
        plan: the plan.
        value_bytes: bytes of an element on its way.
        bucket_bytes: most bytes of a buffer, and of a message from one rank to another.

    Returns:
        The sums.
    """
    sent: Counter[int] = Counter()
    received: Counter[tuple[int, int]] = Counter()
    peers: dict[tuple[int, int], int] = defaultdict(int)
    messages = 0
    for (sender, *receiver), elements in plan.pair_sizes().items():
        key = (receiver[0], receiver[1])
        num_bytes = elements * value_bytes
        sent[sender] += num_bytes
        received[key] += num_bytes
        peers[key] += 1
        messages += -(-num_bytes // bucket_bytes)
    most_received, most_sent = max(received.values()), max(sent.values())
    return Traffic(
        received=most_received,
        sent=most_sent,
        senders=len(sent),
        peers=max(peers.values()),
        messages=messages,
        sender_staging=min(most_sent, _BUFFERS * bucket_bytes),
        receiver_staging=min(most_received, _BUFFERS * bucket_bytes),
    )


def passed_elements(plan: ReshardPlan) -> int:
    """Elements that go from one rank of the trainer to another that puts a server's parameters together.

    Args:
        plan: for one server, of one replica.

    Returns:
        Their number, all ranks together.
    """
    return sum(prod(piece.source.shape) for piece in plan.pieces() if piece.sender != plan.assembler(piece))
