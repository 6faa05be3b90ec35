"""Entropy mask, rollout correction and denominator: in which order, and over which tokens."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from megacov.losses import get_loss
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import Algorithm, EntropyMask, RolloutCorrection, SoftAdvantages
from megacov.trainer.optimizer_step.mini_batch import MiniBatch
from megacov.trainer.optimizer_step.scope import make_scope
from megacov.trainer.optimizer_step.selection import Selection, select_tokens
from megacov.trainer.optimizer_step.token_inputs import TokenInputs, join_if_known
from megacov.trainer.optimizer_step.update import MiniBatchLoss
from megacov.trainer.optimizer_step.weighting import weigh_tokens
from megacov.types import RolloutBatch
from tests.support.policies import GRPO, KL_COV

# Three samples; the tokens of the last are masked but one.
SAMPLES = torch.tensor([0] * 6 + [1] * 3 + [2] * 4)
LOSS_MASK = torch.tensor([True] * 9 + [False] * 3 + [True])
N = len(SAMPLES)


def _batch() -> RolloutBatch:
    loss_mask = torch.zeros(3, 6, dtype=torch.bool)
    position = torch.cat([torch.arange(6), torch.arange(3), torch.arange(4)])
    loss_mask[SAMPLES, position] = LOSS_MASK
    return RolloutBatch(
        tokens=torch.zeros(3, 8, dtype=torch.int64),
        prompt_lengths=torch.full((3,), 2),
        response_lengths=torch.tensor([6, 3, 4]),
        loss_mask=loss_mask,
        rollout_log_probs=torch.zeros(3, 6),
        group_ids=torch.zeros(3, dtype=torch.int64),
        rewards=torch.tensor([1.0, 0.0, 0.0]),
        max_response_length=6,
    )


def _inputs() -> TokenInputs:
    generator = torch.Generator().manual_seed(0)
    old = -2 * torch.rand(N, generator=generator)
    advantages = torch.tensor([1.0, -0.5, -0.5])[SAMPLES]
    position = torch.cat([torch.arange(6), torch.arange(3), torch.arange(4)])
    return TokenInputs(
        old_log_probs=old,
        trainer_log_probs=old,
        entropy=torch.rand(N, generator=generator),
        entropy_t1=torch.zeros(N),
        rollout_log_probs=old - 0.8 * torch.randn(N, generator=generator),
        advantages=advantages,
        token_ids=SAMPLES * 6 + position,
        loss_mask=LOSS_MASK,
        sample_index=SAMPLES,
        ref_log_probs=None,
        kept_mask=LOSS_MASK,
        importance=torch.ones(N),
        policy_advantages=advantages,
        token_weights=torch.zeros(N),
    )


def _composed(algorithm: Algorithm) -> TokenInputs:
    """As if the tokens came in two micro-batches."""
    whole = _inputs()
    halves = [
        TokenInputs(**{name: None if value is None else value[part] for name, value in vars(whole).items()})
        for part in (slice(0, 5), slice(5, N))
    ]
    parts = weigh_tokens(MiniBatch(0, range(3), [], halves), _batch(), algorithm, ParallelGroups()).inputs
    values = {name: join_if_known(parts, name) for name in vars(whole)}
    return TokenInputs(**values)


def _high(entropy: Tensor, ratio: float) -> Tensor:
    """The mask straight from its definition."""
    number = max(1, int(ratio * int(LOSS_MASK.sum())))
    order = entropy.where(LOSS_MASK, -1.0).argsort(descending=True)
    return torch.zeros(N, dtype=torch.bool).index_fill(0, order[:number], True)


def test_without_either_every_loss_token_counts_alike() -> None:
    found = _composed(GRPO)
    assert torch.equal(found.kept_mask, LOSS_MASK)
    assert torch.equal(found.policy_advantages, found.advantages)
    torch.testing.assert_close(found.token_weights, LOSS_MASK / LOSS_MASK.sum())


@pytest.mark.parametrize("denominator", ["all", "kept"])
@pytest.mark.parametrize("keep", ["high", "low"])
def test_entropy_mask_and_its_denominator(keep: str, denominator: str) -> None:
    algorithm = replace(GRPO, entropy_mask=EntropyMask(keep, 0.3), denominator=denominator)
    found = _composed(algorithm)
    high = _high(found.entropy, 0.3)
    expected = high if keep == "high" else LOSS_MASK & ~high
    assert torch.equal(found.kept_mask, expected)
    count = expected.sum() if denominator == "kept" else LOSS_MASK.sum()
    torch.testing.assert_close(found.token_weights, expected / count)


@pytest.mark.parametrize("level", ["token", "sequence", "sequence_mean"])
@pytest.mark.parametrize("denominator", ["all", "kept"])
def test_masked_correction_and_its_denominator(level: str, denominator: str) -> None:
    correction = RolloutCorrection(level, "mask", 0.6, 1.8)
    found = _composed(replace(GRPO, rollout_correction=correction, denominator=denominator))
    log_ratio = found.old_log_probs - found.rollout_log_probs
    if level != "token":
        for sample in range(3):
            own = (sample == SAMPLES) & LOSS_MASK
            total = log_ratio[own].sum() if level == "sequence" else log_ratio[own].mean()
            log_ratio[sample == SAMPLES] = total
    weights = log_ratio.exp()
    expected = LOSS_MASK & (weights >= 0.6) & (weights <= 1.8)
    assert torch.equal(found.kept_mask, expected)
    torch.testing.assert_close(found.policy_advantages[expected], (found.advantages * weights)[expected])
    count = expected.sum() if denominator == "kept" else LOSS_MASK.sum()
    torch.testing.assert_close(found.token_weights, expected / count.clamp(min=1))


def test_truncation_leaves_every_token_and_the_denominator() -> None:
    found = _composed(replace(GRPO, rollout_correction=RolloutCorrection("token", "truncate", 0.5, 1.2)))
    weights = (found.old_log_probs - found.rollout_log_probs).exp().clamp(max=1.2)
    assert torch.equal(found.kept_mask, LOSS_MASK)
    torch.testing.assert_close(found.importance, weights)
    torch.testing.assert_close(found.token_weights, LOSS_MASK / LOSS_MASK.sum())


def test_sequence_modes_count_kept_tokens_of_each_sequence() -> None:
    algorithm = replace(
        GRPO,
        entropy_mask=EntropyMask("low", 0.3),
        denominator="kept",
        aggregation="sequence_mean_token_mean",
    )
    found = _composed(algorithm)
    per_sequence = torch.tensor([int(found.kept_mask[sample == SAMPLES].sum()) for sample in range(3)])
    expected = found.kept_mask / (per_sequence[SAMPLES].clamp(min=1) * (per_sequence > 0).sum())
    torch.testing.assert_close(found.token_weights, expected)


def test_covariance_and_its_selection_see_only_what_is_left() -> None:
    """The entropy mask comes first: means, N and candidates of KL-Cov are those of the kept tokens."""
    algorithm = replace(KL_COV, entropy_mask=EntropyMask("high", 0.6), selection_hyperparameters={"ratio": 0.5})
    found = _composed(algorithm)
    chosen = select_tokens([found], [found.old_log_probs], [], algorithm, update=0, group=None).masks[0]
    kept = found.kept_mask
    lp, a = found.old_log_probs.double(), found.advantages.double()
    cov = ((lp - lp[kept].mean()) * (a - a[kept].mean())).where(kept, -torch.inf)
    expected = torch.zeros(N, dtype=torch.bool).index_fill(0, cov.topk(int(0.5 * int(kept.sum()))).indices, True)
    assert torch.equal(chosen, expected)


def test_correction_weighs_the_policy_loss_and_not_the_penalty() -> None:
    """loss_i = w_i * policy loss + penalty: the covariance action comes after the correction."""
    algorithm = replace(KL_COV, rollout_correction=RolloutCorrection("token", "truncate", 0.5, 1.5))
    found = _composed(algorithm)
    selected = torch.zeros(N, dtype=torch.bool)
    selected[[0, 7]] = True
    log_probs = found.old_log_probs + 0.1
    loss = MiniBatchLoss(
        MiniBatch(1, range(3), [], [found]),
        make_scope(algorithm, ParallelGroups()),
        algorithm,
        selection=Selection([selected], [found.entropy], [selected], [found.entropy]),
        is_on_policy=False,
        cp_group=None,
    )
    value = loss(0, log_probs, found.entropy).loss
    d = log_probs - found.old_log_probs
    expected = found.token_weights * (-found.importance * found.advantages * d.exp() + selected * d.abs())
    torch.testing.assert_close(value, expected[LOSS_MASK].sum())


@pytest.mark.parametrize("is_on_policy", [True, False])
def test_a_loss_anchored_at_the_rollout_reads_the_servers_log_probs(is_on_policy: bool) -> None:
    hyperparameters = {"max_fall": 0.05, "max_rise": 0.05, "max_ratio": 1.5}
    algorithm = replace(GRPO, loss=get_loss("dppo"), loss_hyperparameters=hyperparameters)
    found = _composed(algorithm)
    loss = MiniBatchLoss(
        MiniBatch(0, range(3), [], [found]),
        make_scope(algorithm, ParallelGroups()),
        algorithm,
        selection=None,
        is_on_policy=is_on_policy,
        cp_group=None,
    )
    log_probs = found.old_log_probs + 0.1
    rise = log_probs.exp() - found.rollout_log_probs.exp()
    is_out = torch.where(found.advantages > 0, rise > 0.05, rise < -0.05)
    assert 0 < int((is_out & LOSS_MASK).sum()) < int(LOSS_MASK.sum())
    weights = (log_probs - found.rollout_log_probs).exp().clamp(max=1.5)
    expected = found.token_weights * -found.advantages * weights * log_probs * ~is_out
    torch.testing.assert_close(loss(0, log_probs, found.entropy).loss, expected[LOSS_MASK].sum())
    spoiled = replace(
        found, rollout_log_probs=found.rollout_log_probs.clone().index_fill(0, torch.tensor([0]), torch.nan)
    )
    loss._mini_batch.inputs[0] = spoiled
    assert bool(loss(0, log_probs, found.entropy).loss.isnan())


@pytest.mark.parametrize("discount", [0.0, 0.5])
def test_entropy_as_a_reward_comes_before_all_others(discount: float) -> None:
    """Every loss token gets its own advantage, also where a sequence lies in two micro-batches."""
    correction = RolloutCorrection("token", "truncate", 0.0, 1.2)
    soft = SoftAdvantages(0.3, discount)
    found, plain = _composed(replace(GRPO, soft=soft, rollout_correction=correction)), _inputs()
    later = torch.arange(N)[None, :] - torch.arange(N)[:, None]
    is_counted = (SAMPLES[None, :] == SAMPLES[:, None]) & (later > 0) & LOSS_MASK[None, :]
    powers = torch.where(is_counted, discount ** later.clamp(min=1).double(), 0.0)
    future = powers @ plain.entropy.double()
    future = future - future[LOSS_MASK].mean()
    gain = future - plain.old_log_probs.double() - plain.entropy.double()
    expected = torch.where(LOSS_MASK, plain.advantages + 0.3 * gain, plain.advantages.double())
    torch.testing.assert_close(found.advantages.double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.soft_part.double(), expected - plain.advantages.double(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.policy_advantages, found.advantages * found.importance)
    assert found.importance.unique().numel() > 2
