"""KL-Cov, Clip-Cov and high-entropy selection on one rank equal the published definitions.

KL-Cov (arXiv 2505.22617, eq. 13): the max(1, int(ratio * N)) largest cov_i = (lp_i - mean lp)(A_i - mean A).
Clip-Cov (eq. 11): max(1, int(ratio * N)) uniformly random tokens with lower < cov_i < upper, except those that PPO's
clip cuts already, which still count in N.
"""

import pytest
import torch

from megacov.errors import ConfigError
from megacov.ops import covariance
from megacov.selection import (
    SelectionInputs,
    get_selector,
    global_top_k,
    select_clip_cov,
    select_high_entropy,
    select_kl_cov,
)
from tests.support import reference

NUM_TOKENS = 4000


def _tokens(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probs, advantages by sequence, loss mask and shuffled token ids."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = -torch.empty(NUM_TOKENS).exponential_(1.5, generator=generator)
    advantages = torch.randn(NUM_TOKENS // 40, generator=generator).repeat_interleave(40)
    kept_mask = torch.rand(NUM_TOKENS, generator=generator) < 0.9
    return log_probs, advantages, kept_mask, torch.randperm(NUM_TOKENS, generator=generator)


@pytest.mark.parametrize("ratio", [1e-6, 2e-3, 2e-2, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_kl_cov_takes_the_largest_covariances(ratio, seed):
    log_probs, advantages, kept_mask, token_ids = _tokens(seed)
    cov = covariance(log_probs, advantages, kept_mask, group=None)
    selected = select_kl_cov(cov, kept_mask, token_ids, ratio=ratio, group=None)

    expected_cov = reference.covariance(log_probs, advantages, kept_mask)[kept_mask]
    num_selected = max(1, int(len(expected_cov) * ratio))
    expected = kept_mask.nonzero().squeeze(1)[expected_cov.topk(num_selected).indices]
    assert torch.equal(selected.nonzero().squeeze(1), expected.sort().values)


def test_kl_cov_takes_the_largest_not_the_largest_in_magnitude():
    cov = torch.tensor([-9.0, 1.0, 0.5])
    everything = torch.ones(3, dtype=torch.bool)
    assert select_kl_cov(cov, everything, torch.arange(3), ratio=0.4, group=None).tolist() == [False, True, False]


def _clip_cov(cov, eligible, kept_mask, token_ids, *, ratio, lower, upper, update=0, seed=0):
    return select_clip_cov(
        cov, eligible, kept_mask, token_ids, ratio=ratio, lower=lower, upper=upper, seed=seed, update=update, group=None
    )


@pytest.mark.parametrize(("lower", "upper"), [(0.5, 2.0), (0.05, 5.0)])
@pytest.mark.parametrize("ratio", [1e-6, 2e-3, 0.02, 0.9])
def test_clip_cov_takes_the_quota_out_of_the_band(lower, upper, ratio):
    log_probs, advantages, kept_mask, token_ids = _tokens(2)
    eligible = torch.rand(NUM_TOKENS, generator=torch.Generator().manual_seed(3)) < 0.8
    cov = covariance(log_probs, advantages, kept_mask, group=None)
    selected = _clip_cov(cov, eligible, kept_mask, token_ids, ratio=ratio, lower=lower, upper=upper)

    expected_cov = reference.covariance(log_probs, advantages, kept_mask)
    band = kept_mask & eligible & (expected_cov > lower) & (expected_cov < upper)
    assert not (selected & ~band).any()
    assert int(selected.sum()) == min(max(1, int(ratio * int(kept_mask.sum()))), int(band.sum()))


def test_clip_cov_has_a_strict_band_and_may_take_nothing():
    cov = torch.tensor([1.0, 5.0, 3.0, 0.0])
    everything = torch.ones(4, dtype=torch.bool)
    token_ids = torch.arange(4)
    chosen = _clip_cov(cov, everything, everything, token_ids, ratio=1.0, lower=1.0, upper=5.0)
    assert chosen.tolist() == [False, False, True, False]
    assert not _clip_cov(cov, everything, everything, token_ids, ratio=1.0, lower=7.0, upper=8.0).any()
    with pytest.raises(ValueError, match="band"):
        _clip_cov(cov, everything, everything, token_ids, ratio=1.0, lower=5.0, upper=5.0)


def test_clip_cov_draws_every_token_of_the_band_equally_often():
    num_in_band, quota, num_updates = 40, 4, 1500
    cov = torch.cat([torch.full((num_in_band,), 2.0), torch.zeros(60)])
    everything = torch.ones(100, dtype=torch.bool)
    token_ids = torch.randperm(100, generator=torch.Generator().manual_seed(0)) * 1009
    draws = torch.stack(
        [
            _clip_cov(cov, everything, everything, token_ids, ratio=0.04, lower=1.0, upper=5.0, update=update)
            for update in range(num_updates)
        ]
    )
    assert (draws.sum(1) == quota).all()
    counts = draws[:, :num_in_band].double().sum(0)
    share = quota / num_in_band
    # For draws without replacement this sum is chi-square with 39 degrees of freedom; its 1e-4 tails are 14 and 83.
    chi_square = (
        ((counts - num_updates * share) ** 2).sum() / (num_updates * share * (1 - share)) * (1 - 1 / num_in_band)
    )
    assert 14 < chi_square < 83


def test_clip_cov_draws_anew_for_another_update_or_seed():
    cov = torch.full((1000,), 2.0)
    everything = torch.ones(1000, dtype=torch.bool)
    arguments = (cov, everything, everything, torch.arange(1000))
    first = _clip_cov(*arguments, ratio=0.05, lower=1.0, upper=5.0)
    assert torch.equal(first, _clip_cov(*arguments, ratio=0.05, lower=1.0, upper=5.0))
    for other in ({"update": 1}, {"seed": 1}):
        overlap = first & _clip_cov(*arguments, ratio=0.05, lower=1.0, upper=5.0, **other)
        assert int(overlap.sum()) < 15


def test_high_entropy_takes_the_largest_entropies():
    entropy = torch.rand(1000, generator=torch.Generator().manual_seed(0))
    kept_mask = torch.arange(1000) % 3 != 0
    selected = select_high_entropy(entropy, kept_mask, torch.arange(1000), ratio=0.2, group=None)
    assert int(selected.sum()) == int(0.2 * 666)
    assert entropy[selected].min() > entropy[kept_mask & ~selected].max()


def test_the_registry_calls_the_methods_with_their_hyperparameters():
    log_probs, advantages, kept_mask, token_ids = _tokens(4)
    cov = covariance(log_probs, advantages, kept_mask, group=None)
    inputs = SelectionInputs(
        cov=cov, entropy=-log_probs, kept_mask=kept_mask, token_ids=token_ids, seed=3, update=7, group=None
    )
    assert torch.equal(
        get_selector("kl_cov")(inputs, ratio=0.01), select_kl_cov(cov, kept_mask, token_ids, ratio=0.01, group=None)
    )
    assert torch.equal(
        get_selector("clip_cov")(inputs, ratio=0.01, lower=0.5, upper=4.0),
        _clip_cov(cov, kept_mask, kept_mask, token_ids, ratio=0.01, lower=0.5, upper=4.0, seed=3, update=7),
    )
    high_entropy = get_selector("high_entropy")(inputs, ratio=0.01)
    assert torch.equal(
        high_entropy, global_top_k(-log_probs, kept_mask, token_ids, k=int(0.01 * int(kept_mask.sum())), group=None)
    )


def test_an_unknown_method_and_a_missing_entropy_are_refused():
    with pytest.raises(
        ConfigError,
        match="'kl_conv' does not exist; choose one of bapo, clip_cov, high_entropy, kl_cov, lp_reg, m2po, steer",
    ):
        get_selector("kl_conv")
    nothing = torch.zeros(1)
    inputs = SelectionInputs(
        cov=nothing, kept_mask=nothing.bool(), token_ids=nothing.long(), seed=0, update=0, group=None
    )
    with pytest.raises(ValueError, match="entropy is None"):
        get_selector("high_entropy")(inputs, ratio=0.1)
