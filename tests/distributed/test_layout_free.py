"""The same tokens give bit-equal covariance, means and selection, however they are split over ranks."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor.debug import CommDebugMode

from megacov.ops import covariance, masked_extremes, masked_mean, masked_sum, token_and_sequence_mean
from megacov.selection import SelectionInputs, get_selector, global_quantile, selection_margin, smallest_with_mean
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

NUM_TOKENS = 6000
SELECTORS = {
    "kl_cov": {"ratio": 2e-3},
    "clip_cov": {"ratio": 2e-3, "lower": 0.2, "upper": 3.0},
    "high_entropy": {"ratio": 0.2},
    "m2po": {"threshold": 0.02},
    "bapo": {
        "positive_share": 0.5,
        "lower_start": 0.6,
        "lower_end": 0.9,
        "upper_start": 1.2,
        "upper_end": 3.0,
        "step": 0.05,
    },
    "lp_reg": {"negative_ratio": 0.01, "positive_ratio": 0.003},
    "steer": {"min_weight": 0.7, "min_scale": 0.02},
}


def _all_tokens() -> dict[str, torch.Tensor]:
    """Tokens in the order of their ids; half of them share log-prob and advantage with others, so there are ties."""
    generator = torch.Generator().manual_seed(11)
    log_probs = -torch.empty(NUM_TOKENS).exponential_(1.5, generator=generator)
    log_probs[::2] = log_probs[::2].round(decimals=1)
    advantages = torch.randint(-2, 3, (NUM_TOKENS // 100,), generator=generator).repeat_interleave(100) * 0.7
    loss_mask = torch.rand(NUM_TOKENS, generator=generator) < 0.9
    return {
        "log_probs": log_probs,
        "old_log_probs": log_probs + 0.3 * torch.randn(NUM_TOKENS, generator=generator),
        "advantages": advantages,
        "entropy": -log_probs * 0.9,
        "loss_mask": loss_mask,
        "eligible_mask": torch.rand(NUM_TOKENS, generator=generator) < 0.95,
        "token_ids": torch.arange(NUM_TOKENS) * 7 + 3,
    }


def _homes(split: str, num_ranks: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An order of the tokens, and the rank of each place in it."""
    order = torch.arange(NUM_TOKENS)
    if split == "contiguous":
        return order, order * num_ranks // NUM_TOKENS
    if split == "round robin":
        return order, order % num_ranks
    if split == "last rank has all":
        return order, torch.full_like(order, num_ranks - 1)
    assert split == "shuffled and uneven"
    generator = torch.Generator().manual_seed(5)
    shares = torch.rand(NUM_TOKENS, generator=generator) ** 3 * num_ranks
    return torch.randperm(NUM_TOKENS, generator=generator), shares.long()


SPLITS = ["contiguous", "round robin", "last rank has all", "shuffled and uneven"]


def _statistics(tokens: dict[str, torch.Tensor], group) -> dict:
    """What methods may ask of a whole optimizer step, each by one call."""
    log_probs, loss_mask, samples = tokens["log_probs"], tokens["loss_mask"], tokens["token_ids"] // 700
    return {
        "masked_extremes": lambda: masked_extremes(log_probs, loss_mask, group=group),
        "global_quantile": lambda: global_quantile(log_probs, loss_mask, quantile=0.37, group=group),
        "token_and_sequence_mean": lambda: token_and_sequence_mean(
            log_probs, loss_mask, samples, num_samples=70, group=group
        ),
        "smallest_with_mean": lambda: smallest_with_mean(log_probs.square(), loss_mask, bound=0.2, group=group),
    }


def _of_ratios(tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What methods read that look at ratios."""
    return {
        "log_probs": tokens["log_probs"],
        "old_log_probs": tokens["old_log_probs"],
        "rollout_log_probs": tokens["old_log_probs"],
        "policy_advantages": tokens["advantages"],
        "current_entropy": tokens["entropy"],
    }


def _evaluate(tokens: dict[str, torch.Tensor], group) -> dict:
    cov = covariance(tokens["log_probs"], tokens["advantages"], tokens["loss_mask"], group=group)
    inputs = SelectionInputs(
        cov=cov,
        entropy=tokens["entropy"],
        kept_mask=tokens["loss_mask"],
        token_ids=tokens["token_ids"],
        eligible_mask=tokens["eligible_mask"],
        seed=1,
        update=17,
        group=group,
        **_of_ratios(tokens),
    )
    selected = {name: get_selector(name)(inputs, **settings) for name, settings in SELECTORS.items()}
    statistics = _statistics(tokens, group)
    chosen = [get_selector(name).choose(inputs, **SELECTORS[name]).found for name in ("m2po", "bapo", "steer")]
    selected["steer weights"] = get_selector("steer").choose(inputs, **SELECTORS["steer"])[1]
    selected["smallest_with_mean"] = statistics["smallest_with_mean"]()
    scalars = [
        masked_sum(tokens["entropy"], tokens["loss_mask"], group=group),
        masked_mean(tokens["log_probs"], tokens["loss_mask"], group=group),
        *statistics["masked_extremes"](),
        statistics["global_quantile"](),
        *statistics["token_and_sequence_mean"](),
        *(value for found in chosen for value in found.values()),
        *selection_margin(cov, selected["kl_cov"], tokens["loss_mask"], group=group),
    ]
    return {"cov": cov, **selected, "scalars": torch.stack(scalars), "token_ids": tokens["token_ids"]}


def _run(split: str) -> dict:
    order, homes = _homes(split, dist.get_world_size())
    mine = order[homes == dist.get_rank()]
    return _evaluate({name: tensor[mine] for name, tensor in _all_tokens().items()}, dist.group.WORLD)


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_split_gives_the_same_bits(world_size):
    alone = _evaluate(_all_tokens(), None)
    assert int(alone["clip_cov"].sum()) >= 10
    assert min(int(alone[name].sum()) for name in ("m2po", "bapo", "steer", "lp_reg")) >= 10
    assert alone["steer weights"].min() == 0.7
    assert 0 < int(alone["smallest_with_mean"].sum()) < int(_all_tokens()["loss_mask"].sum())
    assert 10 <= int(alone["kl_cov"].sum()) < int(alone["high_entropy"].sum())
    by_split = run_cases(_run, [(split,) for split in SPLITS], world_size=world_size)
    for split, by_rank in zip(SPLITS, by_split, strict=True):
        by_id = torch.cat([result["token_ids"] for result in by_rank]).argsort()
        for name in ("cov", "smallest_with_mean", "steer weights", *SELECTORS):
            together = torch.cat([result[name] for result in by_rank])[by_id]
            assert torch.equal(together, alone[name]), (split, name)
        for result in by_rank:
            assert torch.equal(result["scalars"], alone["scalars"]), split


def _count_collectives() -> dict[str, int]:
    tokens, group = _all_tokens(), dist.group.WORLD
    scores, loss_mask = tokens["log_probs"], tokens["loss_mask"]
    calls = {
        "covariance": lambda: covariance(scores, tokens["advantages"], loss_mask, group=group),
        "masked_sum": lambda: masked_sum(scores, loss_mask, group=group),
        "masked_mean": lambda: masked_mean(scores, loss_mask, group=group),
        "selection_margin": lambda: selection_margin(scores, loss_mask, loss_mask, group=group),
    }
    inputs = SelectionInputs(
        cov=scores,
        entropy=scores,
        kept_mask=loss_mask,
        token_ids=tokens["token_ids"],
        seed=0,
        update=0,
        group=group,
        **_of_ratios(tokens),
    )
    calls |= _statistics(tokens, group)
    for name, settings in SELECTORS.items():
        calls[name] = lambda name=name, settings=settings: get_selector(name)(inputs, **settings)
    counts = {}
    for name, call in calls.items():
        comm = CommDebugMode()
        with comm:
            call()
        counts[name] = comm.get_total_counts()
    return counts


def test_the_number_of_collectives_is_the_documented_one():
    expected = {
        "covariance": 1,
        "masked_sum": 1,
        "masked_mean": 1,
        "masked_extremes": 1,
        "global_quantile": 1 + 3 + 1,
        "token_and_sequence_mean": 1,
        "smallest_with_mean": 3,
        "selection_margin": 1,
        "kl_cov": 1 + 1 + 9,
        "clip_cov": 1 + 6,  # where no tie has to be broken, as here and for the next, ids are not searched
        "high_entropy": 1 + 3,
        "m2po": 3,
        "bapo": 1,
        "steer": 1,
        "lp_reg": 2 * (1 + 9),
    }
    assert run_cases(_count_collectives, [()], world_size=2)[0] == [expected, expected]
