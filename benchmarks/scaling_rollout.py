"""Seconds of a rollout: prefill, then decoding by a server whose batch shrinks until the longest response ends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import exp
from statistics import NormalDist

import numpy as np

from benchmarks.scaling_assumptions import Assumptions, Lengths, Model


@dataclass(frozen=True)
class Servers:
    """number: number of servers. tensor: GPUs of each. static: bytes of a GPU for weights, keys and values."""

    number: int
    tensor: int
    static: float


@dataclass(frozen=True)
class Rollout:
    """Seconds of the server that ends last.

    tail: part of decoding in which less than a quarter of the sequences is left.
    floor: seconds at peak rates.
    waves: sequences of that server divided by the number that it holds at its start.
    """

    prefill: float
    decode: float
    tail: float
    floor: float
    waves: float

    @property
    def seconds(self) -> float:
        """Seconds of the whole phase."""
        return self.prefill + self.decode


@lru_cache(maxsize=256)
def response_lengths(lengths: Lengths, *, number: int, longest: int) -> tuple[int, ...]:
    """Quantiles of the distribution, whose location is chosen so that the mean after the cut is as assumed.

    Args:
        lengths: mean and spread.
        number: number of responses.
        longest: greatest number of tokens of a response.

    Returns:
        Number of tokens of each response, longest first.
    """
    normal = [NormalDist().inv_cdf((i + 0.5) / number) for i in range(number)]
    relative = np.exp(lengths.spread * np.array(normal[::-1]))
    low, high = 0.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        mean = np.minimum(longest, exp(middle) * relative).mean()
        low, high = (middle, high) if mean < lengths.mean else (low, middle)
    return tuple(int(n) for n in np.clip(np.rint(exp(low) * relative), 1, longest))


def simulate_rollout(
    model: Model, given: Assumptions, servers: Servers, responses: tuple[int, ...], *, samples: int
) -> Rollout:
    """Follow the server with the most work.

    Responses are assigned in turn from the longest on, so this server has the longest of all and as many as any other.

    Args:
        model: the model that is served.
        given: assumptions with the rates.
        servers: number and sizes of the servers.
        responses: number of tokens of each response, longest first.
        samples: responses to a prompt, which is read once for all of them.

    Returns:
        The seconds.
    """
    own = np.array(responses[:: servers.number], dtype=float)
    prompt, gpu, shares = given.lengths.prompt, given.gpu, given.shares
    prompts = -(-len(own) // samples)
    flops = model.forward_flops(prompts * prompt, prompts * prompt**2) / servers.tensor
    capacity = servers.static - model.weight_bytes / servers.tensor
    if capacity < (prompt + own[0]) * model.token_bytes / servers.tensor + model.state_bytes / servers.tensor:
        return Rollout(float("inf"), float("inf"), 0.0, 0.0, float("inf"))
    decode, tail, floor, first = _decode(model, given, servers.tensor, own, capacity)
    prefill = flops / gpu.flops
    return Rollout(prefill / shares.training, decode, tail, floor + prefill, len(own) / first)


def _decode(
    model: Model, given: Assumptions, tensor: int, own: np.ndarray, capacity: float
) -> tuple[float, float, float, int]:
    """Seconds of decoding, seconds of its tail, seconds at peak rates, and the number of sequences that begin at once.

    A sequence begins when there is room for the keys and values that it will have in the end.
    """
    prompt = given.lengths.prompt
    # The order is random but fixed, except that the longest sequence begins at once, which is the best case.
    order = np.concatenate([own[:1], np.random.default_rng(0).permutation(own[1:])])
    needs = ((prompt + order) * model.token_bytes + model.state_bytes) / tensor
    left, written = np.empty(0), np.empty(0)
    held, begun, first, seconds, tail, floor = np.empty(0), 0, 0, 0.0, 0.0, 0.0
    while begun < len(order) or len(left):
        room = capacity - held.sum()
        fits = begun < len(order) and needs[begun] <= room
        count = int(np.searchsorted(np.cumsum(needs[begun:]), room, side="right")) if fits else 0
        new = order[begun : begun + count]
        left, written = np.concatenate([left, new]), np.concatenate([written, np.zeros(count)])
        held, begun = np.concatenate([held, needs[begun : begun + count]]), begun + count
        first = first or count
        steps = left.min()
        context = float(len(left) * (prompt + steps / 2) + written.sum())
        slow, fast = decode_step(model, given, tensor, sequences=len(left), context=context)
        seconds, floor = seconds + steps * slow, floor + steps * fast
        tail += steps * slow if len(left) + len(order) - begun < len(order) / 4 else 0.0
        left, written = left - steps, written + steps
        stays = left > 0
        left, written, held = left[stays], written[stays], held[stays]
    return float(seconds), float(tail), float(floor), first


def decode_step(
    model: Model, given: Assumptions, tensor: int, *, sequences: int, context: float
) -> tuple[float, float]:
    """Simulate a decoding step, which adds one token to each sequence.

    Args:
        model: the model that is served.
        given: assumptions with the rates.
        tensor: number of GPUs of the server.
        sequences: number of sequences in the batch.
        context: number of tokens of all sequences, whose keys and values are read.

    Returns:
        Seconds, and seconds at peak rates.
    """
    gpu, shares = given.gpu, given.shares
    num_bytes = model.weight_bytes + context * model.token_bytes + 2 * sequences * model.state_bytes
    memory = num_bytes / tensor / gpu.memory
    # Scores and weighted values have one query for each key.
    flops = 2 * model.active * sequences + 4 * model.attention_layers * model.query_size * context
    arithmetic = flops / tensor / gpu.flops
    slow = max(memory / shares.decoding, arithmetic / shares.training) + given.costs.server_step
    if tensor > 1:
        message = 2 * (1 - 1 / tensor) * sequences * model.hidden_size * 2 / (gpu.nvlink * shares.nvlink)
        slow += 2 * model.layers * (message + given.latency(tensor))
    return slow, max(memory, arithmetic)
