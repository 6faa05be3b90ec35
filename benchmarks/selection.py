"""The global top k over gloo ranks, compared with gathering the scores and sorting them in one place.

The alternatives have an easier task: they do not settle ties. Run: python -m benchmarks.selection [--ranks 4]
"""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.timing import interleaved_ms, print_table
from megacov.parallel import all_gather
from megacov.selection import global_top_k
from tests.support.run_ranks import run_ranks


def gather_then_top_k(scores: Tensor, k: int) -> Tensor:
    return all_gather(scores, group=dist.group.WORLD).flatten().topk(k).indices


def local_top_k_then_gather(scores: Tensor, k: int) -> Tensor:
    best = scores.topk(min(k, len(scores))).values
    return all_gather(best, group=dist.group.WORLD).flatten().topk(k).indices


def measure(num_tokens: int, ratio: float, num_rounds: int) -> dict[str, float]:
    """Times in ms on this rank, for its share of the tokens."""
    rank, num_local = dist.get_rank(), num_tokens // dist.get_world_size()
    scores = torch.randn(num_local, generator=torch.Generator().manual_seed(rank))
    loss_mask, token_ids = torch.ones(num_local, dtype=torch.bool), torch.arange(num_local) + rank * num_local
    k = int(num_tokens * ratio)
    runs = {
        "megacov": lambda: global_top_k(scores, loss_mask, token_ids, k=k, group=dist.group.WORLD),
        "gather everything, then torch.topk": lambda: gather_then_top_k(scores, k),
        "local torch.topk, gather k, then torch.topk": lambda: local_top_k_then_gather(scores, k),
        "floor: one read of the scores": lambda: scores.amax(),
    }
    return interleaved_ms(runs, num_rounds=num_rounds)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1 << 22, help="over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for ratio in (2e-4, 2e-3, 2e-2, 0.2):
        by_rank = run_ranks(measure, options.tokens, ratio, options.rounds, world_size=options.ranks)
        times = {name: max(rank_times[name] for rank_times in by_rank) for name in by_rank[0]}
        print_table(f"{options.tokens} tokens over {options.ranks} ranks, ratio {ratio:g}", times, ours="megacov")


if __name__ == "__main__":
    main()
