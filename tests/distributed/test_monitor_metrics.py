"""Metrics of tokens spread over ranks equal those of the same tokens on one rank, in the documented messages."""

import math

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from megacov.monitor.breakdown import token_sums
from megacov.monitor.covariance_metrics import covariance_histogram, covariance_metrics, selection_metrics
from megacov.monitor.metrics import entropy_means, mismatch_metrics, policy_means
from megacov.ops import covariance
from tests.support.run_ranks import run_cases

NUM_TOKENS, NUM_SAMPLES = 900, 12


def _all_tokens() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    log_probs = -torch.empty(NUM_TOKENS).exponential_(1.0, generator=generator)
    return {
        "log_probs": log_probs,
        "rollout_log_probs": log_probs + 0.01 * torch.randn(NUM_TOKENS, generator=generator),
        "advantages": torch.randn(NUM_TOKENS, generator=generator),
        "entropy": torch.rand(NUM_TOKENS, generator=generator),
        "loss_mask": torch.rand(NUM_TOKENS, generator=generator) < 0.9,
        "selected": torch.rand(NUM_TOKENS, generator=generator) < 0.1,
        "token_ids": torch.arange(NUM_TOKENS),
    }


def _calls(tokens: dict[str, torch.Tensor], group):
    """Name -> function without arguments that computes metrics of these tokens."""
    mask = tokens["loss_mask"]
    selected = tokens["selected"] & mask
    cov = covariance(tokens["log_probs"], tokens["advantages"], mask, group=group)
    inputs = (cov, tokens["log_probs"], tokens["advantages"], mask, tokens["token_ids"])
    # Samples follow one another, so a split inside a sample spreads it over two ranks.
    sample_ids = tokens["token_ids"] * NUM_SAMPLES // NUM_TOKENS
    sums = {"ratio": tokens["entropy"].double().sum(), "k1": tokens["log_probs"].double().sum()}
    return {
        "covariance": lambda: covariance_metrics(*inputs, group=group, selected=selected),
        "by rank": lambda: selection_metrics(selected, mask, group=group, scores=cov, micro_batch_selected=mask),
        "band": lambda: selection_metrics(selected, mask, group=group, candidates=mask),
        "entropy": lambda: entropy_means(
            {"": tokens["entropy"], "_t1": tokens["log_probs"]}, sample_ids, mask, num_samples=NUM_SAMPLES, group=group
        ),
        "mismatch": lambda: mismatch_metrics(tokens["log_probs"], tokens["rollout_log_probs"], mask, group=group),
        "policy": lambda: policy_means(sums, num_tokens=NUM_TOKENS, group=group),
        "breakdown": lambda: _breakdown(tokens, cov, mask, selected, group),
        "histogram": lambda: covariance_histogram(cov, mask, group=group),
    }


def _breakdown(tokens: dict[str, torch.Tensor], cov, mask, selected, group) -> dict[str, torch.Tensor]:
    """Sums by sample and by one of 50 tokens."""
    divisions = [(tokens["token_ids"] * NUM_SAMPLES // NUM_TOKENS, NUM_SAMPLES), (tokens["token_ids"] % 50, 50)]
    found = token_sums(
        divisions, entropy=tokens["entropy"], cov=cov, loss_mask=mask, kept_mask=mask, selected=selected, group=group
    )
    return {f"{i}.{name}": values for i, sums in enumerate(found) for name, values in sums._asdict().items()}


def _run(sizes: tuple[int, int]) -> tuple[dict, dict[str, int]]:
    """Metrics that this rank computes from its share of the tokens, and the number of messages by metric."""
    first = 0 if dist.get_rank() == 0 else sizes[0]
    mine = slice(first, first + sizes[dist.get_rank()])
    metrics, counts = {}, {}
    calls = _calls({name: tensor[mine] for name, tensor in _all_tokens().items()}, dist.group.WORLD)
    for name, call in calls.items():
        with CommDebugMode() as comm:
            metrics[name] = call()
        counts[name] = comm.get_total_counts()
    return metrics, counts


def _mismatch_with_nan(bad_rank: int) -> dict[str, float]:
    """Mismatch and histogram of two tokens a rank, where one rank has a value that is not a number."""
    old = torch.tensor([-1.0, float("nan") if dist.get_rank() == bad_rank else -2.0])
    mask = torch.ones(2, dtype=torch.bool)
    group = dist.group.WORLD
    got = mismatch_metrics(old, torch.full((2,), -1.5), mask, group=group)
    histogram = covariance_histogram(old, mask, group=group)
    extremes = {"minimum": histogram.minimum, "maximum": histogram.maximum, "total": histogram.total}
    return {tag: value.item() for tag, value in got.items()} | extremes


@pytest.mark.dist
def test_a_value_that_is_not_a_number_shows_whichever_rank_has_it():
    for by_rank in run_cases(_mismatch_with_nan, [(0,), (1,)], world_size=2):
        for metrics in by_rank:
            assert all(math.isnan(value) for value in metrics.values()), metrics


@pytest.mark.dist
def test_two_ranks_find_what_one_finds():
    alone = {name: call() for name, call in _calls(_all_tokens(), None).items()}
    cases = [((450, 450),), ((0, NUM_TOKENS),), ((861, 39),)]
    for by_rank in run_cases(_run, cases, world_size=2):
        for metrics, counts in by_rank:
            assert metrics.pop("histogram").counts == alone["histogram"].counts
            for name, expected in alone.items():
                if name != "histogram":
                    assert metrics[name].keys() == expected.keys()
                    for tag, value in expected.items():
                        tolerance = {"rtol": 0, "atol": 0} if name == "breakdown" else {"rtol": 1e-12, "atol": 1e-15}
                        torch.testing.assert_close(metrics[name][tag], value, **tolerance, msg=tag)
            assert counts == {
                "covariance": 2 + 5 * (1 + 3),  # no tie has to be broken
                "by rank": 2,
                "band": 1,
                "entropy": 1,
                "mismatch": 2,
                "policy": 1,
                "breakdown": 1,
                "histogram": 2,
            }
