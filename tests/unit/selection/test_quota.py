"""The number of tokens that a ratio selects."""

import pytest
import torch

from megacov.selection import selection_quota


@pytest.mark.parametrize("ratio", [2e-4, 2e-3, 0.29, 1 / 3, 0.7, 1.0])
@pytest.mark.parametrize("num_tokens", [1, 2, 7, 10, 100, 500, 999, 5000, 10_000])
def test_is_what_python_computes(ratio, num_tokens):
    kept_mask = torch.arange(num_tokens + 3) < num_tokens
    quota = selection_quota(kept_mask, ratio=ratio, group=None)
    assert quota.dtype == torch.int64
    assert quota.item() == max(1, int(ratio * num_tokens))


def test_no_token_has_no_quota():
    assert selection_quota(torch.zeros(5, dtype=torch.bool), ratio=0.5, group=None) == 0
    assert selection_quota(torch.zeros(0, dtype=torch.bool), ratio=0.5, group=None) == 0


@pytest.mark.parametrize("ratio", [0.0, -0.1, 1.5, float("nan")])
def test_a_ratio_that_is_no_fraction_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio"):
        selection_quota(torch.ones(5, dtype=torch.bool), ratio=ratio, group=None)
