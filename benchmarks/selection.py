"""The global top k over gloo ranks, beside gathering scores and sorting them in one place, and beside verl's KL-Cov.

The gathering peers have an easier task: they do not settle ties. verl's step copies the tokens of each micro-batch to
the host and takes torch.topk there, so that a micro-batch and not the optimizer step is the scope; its code is found as
benchmarks/peers.py says. Before anything is timed, the selection is compared with a sort, also with many ties.
Run: python -m benchmarks.selection [--ranks 4]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from types import SimpleNamespace
from typing import Optional

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.peers import VERL, PeerMissingError, load
from benchmarks.timing import interleaved_ms, print_goals, print_table
from megacov.losses import get_loss
from megacov.ops import covariance
from megacov.parallel import all_gather
from megacov.selection import global_top_k, select_kl_cov
from megacov.types import LossBatch
from tests.support.run_ranks import run_ranks

GATHER, LOCAL = "gather everything, then torch.topk", "local torch.topk, gather k, then torch.topk"
GOALS = {GATHER: 10.0, LOCAL: 3.0}


def gather_then_top_k(scores: Tensor, k: int) -> Tensor:
    return all_gather(scores, group=dist.group.WORLD).flatten().topk(k).indices


def local_top_k_then_gather(scores: Tensor, k: int) -> Tensor:
    best = scores.topk(min(k, len(scores))).values
    return all_gather(best, group=dist.group.WORLD).flatten().topk(k).indices


def is_exact(scores: Tensor, token_ids: Tensor, k: int) -> bool:
    """Whether the mask is that of a stable sort of all scores, in which the smaller token id wins a tie."""
    mask = global_top_k(scores, torch.ones_like(scores, dtype=torch.bool), token_ids, k=k, group=dist.group.WORLD)
    whole, ids = (all_gather(values, group=dist.group.WORLD).flatten() for values in (scores, token_ids))
    wanted = ids[whole.sort(descending=True, stable=True).indices[:k]]
    return torch.equal(token_ids[mask], wanted[torch.isin(wanted, token_ids)].sort().values)


def measure(num_tokens: int, ratio: float, num_rounds: int) -> tuple[bool, dict[str, list[float]]]:
    """Whether the selection is exact, and times in ms on this rank, for its share of the tokens."""
    torch.set_num_threads(1)
    rank, num_local = dist.get_rank(), num_tokens // dist.get_world_size()
    scores = torch.randn(num_local, generator=torch.Generator().manual_seed(rank))
    loss_mask, token_ids = torch.ones(num_local, dtype=torch.bool), torch.arange(num_local) + rank * num_local
    k = int(num_tokens * ratio)
    exact = [is_exact(each, token_ids, k) for each in (scores, scores.round())]
    runs = {
        "megacov": lambda: global_top_k(scores, loss_mask, token_ids, k=k, group=dist.group.WORLD),
        GATHER: lambda: gather_then_top_k(scores, k),
        LOCAL: lambda: local_top_k_then_gather(scores, k),
        "floor: one read of the scores": lambda: scores.amax(),
    }
    return all(exact), interleaved_ms(runs, num_rounds=num_rounds)


def verl_loss() -> Callable[..., tuple[Tensor, dict[str, float]]]:
    """verl's policy loss of KL-Cov, with the functions that it calls."""
    masked = load(VERL, "verl/utils/torch_functional.py", ("masked_sum", "masked_mean"), torch=torch)
    given = {"torch": torch, "Optional": Optional, "verl_F": SimpleNamespace(**masked), "AlgoConfig": dict}
    names = ("agg_loss", "compute_policy_loss_kl_cov")
    loss: Callable[..., tuple[Tensor, dict[str, float]]] = load(VERL, "verl/trainer/ppo/core_algos.py", names, **given)[
        names[1]
    ]
    return loss


def measure_kl_cov(num_rows: int, num_columns: int, num_micro_batches: int, num_rounds: int) -> dict[str, list[float]]:
    """Times in ms, on one rank, of selection and loss in one optimizer step of 0.0002 KL-Cov, from log-probs on."""
    torch.set_num_threads(1)
    theirs, ours = verl_loss(), get_loss("kl_cov")
    policy = SimpleNamespace(kl_cov_ratio=2e-4, ppo_kl_coef=1.0)
    config = SimpleNamespace(policy_loss=policy, global_batch_info={})
    shape = (num_micro_batches, num_rows, num_columns)
    old, advantages = -torch.rand(shape), torch.randn(shape)
    new, mask = old + 0.1 * torch.randn(shape), torch.ones(shape, dtype=torch.bool)
    ids, weights = torch.arange(mask.numel()).view(shape), torch.full(shape, 1 / mask.numel())

    def verl() -> None:
        for i in range(num_micro_batches):
            theirs(old[i], new[i], advantages[i], mask[i], "token-mean", config)

    def megacov() -> None:
        found = covariance(new, advantages, mask, group=None)
        selected = select_kl_cov(found, mask, ids, ratio=2e-4, group=None)
        for i in range(num_micro_batches):
            fields = (each[i].flatten() for each in (new, old, advantages, mask, weights, ids))
            ours(LossBatch(*fields, selected=selected[i].flatten()), kl_coef=1.0)

    runs = {"megacov, whole optimizer step": megacov, "verl, each micro-batch": verl}
    return interleaved_ms(runs, num_rounds=num_rounds)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 24, help="over all ranks")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    for ratio in (2e-4, 2e-3, 2e-2, 0.2):
        by_rank = run_ranks(measure, options.tokens, ratio, options.rounds, world_size=options.ranks)
        # A selection takes as long as its slowest rank.
        names = by_rank[0][1]
        times = {name: [*map(max, zip(*(found[name] for _, found in by_rank), strict=True))] for name in names}
        print_table(f"{options.tokens} tokens over {options.ranks} ranks, ratio {ratio:g}", times, ours="megacov")
        exact = all(is_exact for is_exact, _ in by_rank)
        print(f"  equal to a sort, with and without ties: {'yes' if exact else 'NO'}")
        if ratio == 2e-4:
            print_goals(times, GOALS, ours="megacov")
    try:
        times = measure_kl_cov(64, 2048, 16, options.rounds)
    except PeerMissingError as error:
        print(f"skipped: {error}")
        return
    title = "KL-Cov from log-probs to losses: 16 micro-batches of 64 x 2,048 tokens, one rank"
    print_table(title, times, ours="megacov, whole optimizer step")


if __name__ == "__main__":
    main()
