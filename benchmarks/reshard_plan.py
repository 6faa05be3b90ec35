"""Plans of weights from shard to shard: bytes, messages, memory on both sides, and the time that planning takes.

The last columns are what rank 0 does whenever the set of servers is new: it plans and divides into rounds, and writes
the part of each rank into the store as compressed JSON.

`.venv/bin/python -m benchmarks.reshard_plan` prints the tables of docs/weight_sync.md. The bytes are arithmetic over
the plans; nothing is sent. The seconds are CPU time of this machine.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from torch.distributed import HashStore

from megacov.plan import Layout, ModelSizes, count_parameters, read_model_sizes, total_parameters
from megacov.plan.reshard import ReshardPlan, plan_reshard
from megacov.plan.reshard_traffic import Traffic, push_traffic
from megacov.plan.weight_parts import ServerLayout
from megacov.weight_receiver.megacov_receiver import Board
from megacov.weight_sync.shard_rounds import Rounds, schedule

_ROOT = Path(__file__).parents[1]
_READY = _ROOT / "yaml_configs" / "models"
_GIB, _BUCKET_BYTES, _VOCAB_DIVISIBLE_BY, _VALUE_BYTES = 2**30, 512 * 2**20, 128, 2


@dataclass(frozen=True)
class Case:
    """A push of a model in bfloat16. config: folder with its config.json."""

    name: str
    config: Path
    trainer: Layout
    servers: ServerLayout

    @property
    def sizes(self) -> ModelSizes:
        """Sizes of the model."""
        return read_model_sizes(self.config / "config.json")

    def plan(self) -> ReshardPlan:
        """The plan of the push."""
        return plan_reshard(self.sizes, self.trainer, self.servers, vocab_divisible_by=_VOCAB_DIVISIBLE_BY)

    def traffic(self, plan: ReshardPlan) -> Traffic:
        """What the push moves."""
        return push_traffic(plan, value_bytes=_VALUE_BYTES, bucket_bytes=_BUCKET_BYTES)

    def rounds(self, plan: ReshardPlan) -> dict[int, Rounds]:
        """The plan in rounds, as `ReshardTransport` divides it; ranks of servers come after those of the trainer."""
        servers, first = self.servers, self.trainer.world_size
        described = [
            {name: ("bfloat16", shape) for name, shape in plan.target_shapes(receiver).items()}
            for receiver in range(servers.tensor)
        ]
        layouts = {
            (server, each): described[each] for server in range(servers.number) for each in range(servers.tensor)
        }
        return schedule(
            plan.pieces(),
            layouts,
            group_rank=lambda server, receiver: first + server * servers.tensor + receiver,
            max_bytes=_BUCKET_BYTES,
        )

    def gathering_bytes(self) -> int:
        """Memory that a transport that gathers takes on rank 0: a matrix of all ranks twice, and two buckets."""
        count = count_parameters(self.sizes, self.trainer, stage=0, vocab_divisible_by=_VOCAB_DIVISIBLE_BY)
        return 2 * self.trainer.tensor * count.largest * _VALUE_BYTES + 2 * _BUCKET_BYTES


_7B, _32B, _MOE = _READY / "qwen2.5-7b", _READY / "qwen2.5-32b", _ROOT / "benchmarks" / "models" / "qwen3-30b-a3b"
CASES = [
    Case("Qwen2.5-7B", _7B, Layout(tensor=4), ServerLayout(4, 1)),
    Case("Qwen2.5-7B", _7B, Layout(tensor=2, data=4), ServerLayout(4, 2)),
    Case("Qwen2.5-32B", _32B, Layout(tensor=8, pipeline=2), ServerLayout(8, 2)),
    Case("Qwen2.5-32B", _32B, Layout(tensor=8, pipeline=2), ServerLayout(4, 4)),
    Case("Qwen2.5-32B", _32B, Layout(tensor=8, data=4), ServerLayout(16, 2)),
    Case("Qwen2.5-32B", _32B, Layout(tensor=8, data=8), ServerLayout(32, 2)),
    Case("Qwen2.5-32B", _32B, Layout(tensor=8, pipeline=4, data=32), ServerLayout(64, 4)),
    Case("Qwen3-30B-A3B", _MOE, Layout(tensor=4, data=4, expert=8), ServerLayout(4, 4)),
    Case("Qwen3-30B-A3B", _MOE, Layout(tensor=4, data=4, expert=8), ServerLayout(2, 8, 8)),
]


def layout_words(case: Case) -> str:
    """Both layouts in a few words."""
    trainer, servers = case.trainer, case.servers
    words = f"TP {trainer.tensor} x PP {trainer.pipeline} x DP {trainer.data}"
    words += f", EP {trainer.expert}" if trainer.expert > 1 else ""
    words += f" to {servers.number} x TP {servers.tensor}"
    return words + (f", EP {servers.expert}" if servers.expert > 1 else "")


def bytes_row(case: Case) -> str:
    """A row of bytes, messages and memory."""
    traffic, whole = case.traffic(case.plan()), total_parameters(case.sizes) * _VALUE_BYTES
    gib = [f"{value / _GIB:.1f}" for value in (whole, traffic.received, traffic.sent)]
    staging = [f"{value / _GIB:.1f}" for value in (case.gathering_bytes(), traffic.sender_staging)]
    counts = (f"{traffic.senders:,}", f"{traffic.peers}", f"{traffic.messages:,}")
    cells = [case.name, layout_words(case), *gib, *counts, *staging, f"{traffic.receiver_staging / _GIB:.1f}"]
    return f"| {' | '.join(cells)} |"


def time_row(case: Case) -> str:
    """A row of pieces, and of CPU seconds for the whole plan, for what one rank needs, and for what rank 0 does."""
    begin = time.process_time()
    pieces = sum(1 for _ in case.plan().pieces())
    whole = time.process_time()
    of_sender = sum(1 for _ in case.plan().sent_by(0))
    of_receiver = sum(1 for _ in case.plan().received_by(case.servers.number - 1, 0))
    of_two = time.process_time() - whole
    begin_rounds = time.process_time()
    rounds, board = case.rounds(case.plan()), Board(HashStore())
    divided = time.process_time()
    for rank in range(case.trainer.world_size + case.servers.ranks):
        board.write(f"plan/{rank}", rounds.get(rank, []))
    written = time.process_time()
    cells = (f"{case.trainer.world_size:,}", f"{case.servers.ranks}", f"{pieces:,}", f"{whole - begin:.2f}")
    cells += (f"{of_sender:,}", f"{of_receiver:,}", f"{of_two / 2:.2f}")
    cells += (f"{divided - begin_rounds:.2f}", f"{written - divided:.2f}")
    return f"| {case.name} | {layout_words(case)} | {' | '.join(cells)} |"


def main() -> None:
    """Print both tables."""
    heads = ["model", "trainer to servers", "all weights", "own part", "busiest sender", "senders", "peers", "messages"]
    heads += ["gathering, rank 0", "staging, trainer", "staging, server"]
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for case in CASES:
        print(bytes_row(case))
    heads = ["model", "trainer to servers", "trainer ranks", "rollout ranks", "pieces", "all, s"]
    heads += ["sent by rank 0", "received by a rank", "for one rank, s"]
    heads += ["in rounds, s", "as JSON, s"]
    print(f"\n| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for case in CASES:
        print(time_row(case))


if __name__ == "__main__":
    main()
