"""Properties of every registered loss, whatever its equation. A new loss is in these tests without an edit here."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from megacov.config.losses import LOSS_SECTIONS
from megacov.errors import ConfigError
from megacov.losses import LOSSES, add_terms, get_loss
from megacov.losses.imported import check_hyperparameters, hyperparameters_of, try_loss
from megacov.types import LossBatch
from tests.support.losses import defaults_of, gradient_of, suite_cases

every_loss = pytest.mark.parametrize(("name", "hyperparameters"), suite_cases())


def part(batch: LossBatch, index: slice) -> LossBatch:
    """The tokens of `index` as a micro-batch of their own."""
    return LossBatch(**{field.name: getattr(batch, field.name)[index] for field in fields(batch)})


def gradient_at(batch: LossBatch, name: str, hyperparameters: dict) -> torch.Tensor:
    """Gradient of the loss, to the log-probs of the batch."""
    log_probs = batch.log_probs.clone().requires_grad_()
    get_loss(name)(replace(batch, log_probs=log_probs), **hyperparameters).loss.backward()
    assert log_probs.grad is not None
    return log_probs.grad


@every_loss
def test_gradient_is_that_of_the_value_or_of_the_formula(name, hyperparameters, make_batch):
    batch = make_batch(24)
    if get_loss(name).has_own_gradient:
        found = gradient_at(batch, name, hyperparameters)
        expected = batch.token_weights * gradient_of(name)(batch, **hyperparameters)
        torch.testing.assert_close(found, torch.where(batch.kept_mask, expected, 0.0), rtol=1e-12, atol=1e-15)
        return
    log_probs = batch.log_probs.clone().requires_grad_()
    entropy = batch.entropy.clone().requires_grad_()

    def loss_of(log_probs, entropy):
        given = replace(batch, log_probs=log_probs, entropy=entropy)
        output = get_loss(name)(given, **hyperparameters)
        return add_terms(output, given, entropy_coef=0.3, ref_kl_coef=0.7, ref_kl_estimator="k3").loss

    assert torch.autograd.gradcheck(loss_of, (log_probs, entropy))


@every_loss
def test_a_loss_says_whether_its_gradient_is_its_own(name, hyperparameters, make_batch):
    batch = make_batch(24)
    value = lambda lp: get_loss(name)(replace(batch, log_probs=lp), **hyperparameters).loss  # noqa: E731
    log_probs = batch.log_probs.clone().requires_grad_()
    agrees = torch.autograd.gradcheck(value, log_probs, raise_exception=False)
    assert agrees != get_loss(name).has_own_gradient


@pytest.mark.parametrize("name", list(LOSSES))
def test_at_the_old_policy_the_gradient_is_the_plain_policy_gradient(name, make_batch):
    found = [
        _is_plain_at_old(name, hyperparameters, make_batch(40))
        for each, hyperparameters in suite_cases()
        if each == name
    ]
    assert all(found) == get_loss(name).is_policy_gradient_at_old


def _is_plain_at_old(name: str, hyperparameters: dict, batch: LossBatch) -> bool:
    nothing_moved = {"sequence_log_ratio": torch.zeros_like(batch.log_probs), "old_entropy": batch.entropy}
    batch = replace(batch, log_probs=batch.old_log_probs, **nothing_moved)
    found = gradient_at(batch, name, hyperparameters)
    plain = torch.where(batch.kept_mask, -batch.token_weights * batch.advantages, 0.0)
    others = ~batch.selected if get_loss(name).needs_selection else torch.ones_like(batch.selected)
    return torch.allclose(found[others], plain[others], rtol=1e-12, atol=0)


@every_loss
def test_micro_batches_add_up_to_one_batch(name, hyperparameters, make_batch):
    batch = make_batch(60)
    whole = get_loss(name)(batch, **hyperparameters)
    parts = [
        get_loss(name)(part(batch, slice(i, j)), **hyperparameters) for i, j in ((0, 1), (1, 20), (20, 20), (20, 60))
    ]
    torch.testing.assert_close(sum(p.loss for p in parts), whole.loss, rtol=1e-12, atol=1e-14)
    for key, value in whole.metrics.items():
        torch.testing.assert_close(sum(p.metrics[key] for p in parts), value, rtol=1e-12, atol=1e-12)


@every_loss
@pytest.mark.parametrize("garbage", [float("nan"), float("inf"), float("-inf"), 1e30])
def test_masked_tokens_add_exactly_nothing(name, hyperparameters, garbage, make_batch):
    clean = make_batch(40)
    spoil = lambda values: torch.where(clean.kept_mask, values, garbage)  # noqa: E731
    dirty = replace(
        clean,
        log_probs=spoil(clean.log_probs).requires_grad_(),
        old_log_probs=spoil(clean.old_log_probs),
        advantages=spoil(clean.advantages),
        token_weights=spoil(clean.token_weights),
        entropy=spoil(clean.entropy).requires_grad_(),
        ref_log_probs=spoil(clean.ref_log_probs),
        sequence_log_ratio=spoil(clean.sequence_log_ratio),
        sequence_tokens=spoil(clean.sequence_tokens),
        old_entropy=spoil(clean.old_entropy),
        selection_weights=spoil(clean.selection_weights),
        filtered_old_log_probs=spoil(clean.filtered_old_log_probs),
        selected=clean.selected | ~clean.kept_mask,
    )
    kept = part(clean, clean.kept_mask)
    terms = {"entropy_coef": 0.1, "ref_kl_coef": 0.2, "ref_kl_estimator": "k3"}
    got = add_terms(get_loss(name)(dirty, **hyperparameters), dirty, **terms)
    expected = add_terms(get_loss(name)(kept, **hyperparameters), kept, **terms)
    torch.testing.assert_close(got.loss, expected.loss, rtol=1e-12, atol=0)
    for key, value in expected.metrics.items():
        torch.testing.assert_close(got.metrics[key], value, rtol=1e-12, atol=1e-12)
    got.loss.backward()
    for gradient in (dirty.log_probs.grad, dirty.entropy.grad):
        assert (gradient[~clean.kept_mask] == 0).all()
        assert gradient[clean.kept_mask].isfinite().all()


@every_loss
def test_a_batch_without_loss_tokens_is_zero_with_a_zero_gradient(name, hyperparameters, make_batch):
    for batch in (make_batch(0), make_batch(5, kept_mask=torch.zeros(5, dtype=torch.bool))):
        log_probs = batch.log_probs.clone().requires_grad_()
        output = get_loss(name)(replace(batch, log_probs=log_probs), **hyperparameters)
        output.loss.backward()
        assert output.loss == 0
        assert (log_probs.grad == 0).all()
        assert all(value == 0 for value in output.metrics.values())


@every_loss
def test_inputs_are_left_as_they_were(name, hyperparameters, make_batch):
    batch = make_batch(40)
    before = {field.name: getattr(batch, field.name).clone() for field in fields(batch)}
    get_loss(name)(batch, **hyperparameters)
    get_loss(name).clipped(batch, **hyperparameters)
    for key, value in before.items():
        assert torch.equal(getattr(batch, key), value), key


@every_loss
def test_metrics_are_detached_float64_sums_over_kept_tokens(name, hyperparameters, make_batch):
    batch = make_batch(50, dtype=torch.float32)
    batch = replace(batch, log_probs=batch.log_probs.requires_grad_())
    output = get_loss(name)(batch, **hyperparameters)
    assert output.loss.dtype == torch.float32
    for value in output.metrics.values():
        assert (value.dtype, value.shape, value.requires_grad) == (torch.float64, (), False)
    d = (batch.log_probs - batch.old_log_probs).detach().double()[batch.kept_mask]
    for key, expected in {"k1": -d, "k1_abs": d.abs(), "k3": d.exp() - 1 - d, "ratio": d.exp()}.items():
        torch.testing.assert_close(output.metrics[key], expected.sum(), rtol=1e-5, atol=1e-5)


@every_loss
def test_clipped_tokens_are_those_the_clip_leaves_without_gradient(name, hyperparameters, make_batch):
    batch = make_batch(200, selected=torch.zeros(200, dtype=torch.bool))
    if get_loss(name).clipped_tokens is not None:  # some ratios are beyond even the widest range
        far = torch.where(torch.arange(200) < 10, 3.0, 0.0).double()
        batch = replace(batch, log_probs=batch.log_probs + far)
    clipped = get_loss(name).clipped(batch, **hyperparameters)
    assert clipped.dtype == torch.bool
    assert torch.equal(clipped, (gradient_at(batch, name, hyperparameters) == 0) & batch.kept_mask)
    assert clipped.any() == (get_loss(name).clipped_tokens is not None)


@every_loss
def test_it_passes_the_check_of_imported_losses(name, hyperparameters):
    check_hyperparameters(get_loss(name), hyperparameters)
    try_loss(get_loss(name), hyperparameters)


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.needs_selection])
def test_a_loss_that_acts_on_selected_tokens_asks_for_them(name, make_batch):
    with pytest.raises(ConfigError, match=r"set algorithm\.selection\.name"):
        get_loss(name)(make_batch(4, selected=None))


@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if not loss.needs_selection])
def test_another_loss_does_not(name, make_batch):
    assert get_loss(name)(make_batch(8, selected=None)).loss.isfinite()


def test_an_unknown_loss_is_named_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"'grpo' is unknown.*clip_cov, .*kl_cov, .*ppo_clip"):
        get_loss("grpo")


def test_every_loss_has_its_mathematics_and_its_settings():
    assert LOSSES.keys() == LOSS_SECTIONS.keys()
    assert LOSSES.keys() >= {"ppo_clip", "clip_cov", "kl_cov"}


@pytest.mark.parametrize("name", LOSSES)
def test_settings_and_function_agree(name):
    loss, section = LOSSES[name], LOSS_SECTIONS[name]
    assert defaults_of(name) == {key: default for key, (_, default) in hyperparameters_of(loss).items()}
    assert section.needs_selection == loss.needs_selection
    assert section.is_anchored_at_rollout == loss.is_anchored_at_rollout
    assert section.needs_old_entropy == loss.needs_old_entropy
    assert section.needs_filtered_old == loss.needs_filtered_old


def test_metrics_of_one_name_are_one_quantity():
    known: dict = {}
    for loss in LOSSES.values():
        for name, metric in loss.metrics.items():
            assert known.setdefault(name, metric) == metric, name
