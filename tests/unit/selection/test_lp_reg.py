"""Lp-Reg's selection against a sort of the tokens of each sign."""

from __future__ import annotations

import pytest
import torch

from megacov.selection import SelectionInputs, get_selector

N = 2000
LP_REG = get_selector("lp_reg")


def make_inputs(seed: int = 0, **changes) -> SelectionInputs:
    generator = torch.Generator().manual_seed(seed)
    fields = {
        "log_probs": -torch.empty(N).exponential_(1.5, generator=generator).round(decimals=2),  # with ties
        "policy_advantages": torch.randint(-1, 2, (N,), generator=generator) * torch.rand(N, generator=generator),
        "kept_mask": torch.rand(N, generator=generator) < 0.8,
        "token_ids": torch.randperm(N, generator=generator),
        "cov": torch.zeros(N),
    }
    return SelectionInputs(**{**fields, **changes}, seed=0, update=0, group=None)


def lowest(inputs: SelectionInputs, ratio: float, sign: int) -> set[int]:
    """Ids of the least probable share of the tokens of one sign; of equal ones the smaller id first."""
    tokens = sorted(
        (log_prob, token_id)
        for log_prob, advantage, is_kept, token_id in zip(
            inputs.log_probs.tolist(),
            inputs.policy_advantages.tolist(),
            inputs.kept_mask.tolist(),
            inputs.token_ids.tolist(),
            strict=True,
        )
        if is_kept and advantage * sign > 0
    )
    return {token_id for _, token_id in tokens[: max(1, int(ratio * len(tokens))) if ratio else 0]}


@pytest.mark.parametrize(("negative", "positive"), [(0.005, 0.0), (0.3, 0.1), (0.0, 0.02), (1.0, 1e-9), (0.0, 0.0)])
def test_it_takes_the_least_probable_of_each_sign(negative, positive):
    inputs = make_inputs()
    found = LP_REG(inputs, negative_ratio=negative, positive_ratio=positive)
    expected = lowest(inputs, negative, -1) | lowest(inputs, positive, +1)
    assert set(inputs.token_ids[found].tolist()) == expected
    assert found[~inputs.kept_mask | (inputs.policy_advantages == 0)].sum() == 0


def test_what_is_masked_does_not_count():
    clean = make_inputs(1)
    spoil = {
        name: torch.where(clean.kept_mask, getattr(clean, name), float("nan"))
        for name in ("log_probs", "policy_advantages")
    }
    settings = {"negative_ratio": 0.1, "positive_ratio": 0.1}
    assert torch.equal(LP_REG(make_inputs(1, **spoil), **settings), LP_REG(clean, **settings))
    assert not LP_REG(make_inputs(1, kept_mask=torch.zeros(N, dtype=torch.bool)), **settings).any()
