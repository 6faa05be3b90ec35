"""KL-Cov where covariances say nothing: equal ones select no token, and `min_cov` may leave few."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from megacov.megatron.policy import UpdateResult
from megacov.monitor.tags import TAGS
from megacov.ops import covariance
from megacov.parallel.groups import ParallelGroups
from megacov.selection import global_top_k, select_kl_cov
from megacov.trainer.optimizer_step.selection import Selection
from megacov.trainer.optimizer_step.uninformative import count_uninformative
from megacov.trainer.optimizer_step.update import UpdateOutcome
from tests.support.policies import CLIP_COV, GRPO, KL_COV

N = 400
MASK = torch.rand(N, generator=torch.Generator().manual_seed(0)) < 0.8
IDS = torch.randperm(N, generator=torch.Generator().manual_seed(1))
LOG_PROBS = -torch.empty(N).exponential_(1.5, generator=torch.Generator().manual_seed(2))


def select(cov, mask=MASK, **settings):
    return select_kl_cov(cov, mask, IDS, ratio=0.05, group=None, **settings)


@pytest.mark.parametrize("advantage", [0.0, 1.0, -1 / 3, 0.1, 2.475, 1e-4])
def test_advantages_that_are_all_alike_select_nothing(advantage):
    """For any value: their mean must be that value to the last bit, or noise would select."""
    cov = covariance(LOG_PROBS, torch.full((N,), advantage), MASK, group=None)
    assert not select(cov).any()


def test_the_published_code_and_a_top_k_select_among_equals():
    cov = torch.zeros(N)
    as_published = select(cov, selects_among_equals=True)
    quota = int(0.05 * int(MASK.sum()))
    assert torch.equal(as_published, global_top_k(cov, MASK, IDS, k=quota, group=None))
    assert int(as_published.sum()) == quota


def test_one_other_value_is_enough_and_only_masked_tokens_count():
    cov = torch.zeros(N)
    first, second = MASK.nonzero().squeeze(1)[:2]
    outside = (~MASK).nonzero()[0]
    assert not select(cov.index_fill(0, outside, 9.0)).any()
    assert not select(torch.where(MASK, cov, float("nan"))).any()
    assert not select(torch.where(torch.arange(N) % 2 == 0, 0.0, -0.0)).any()
    assert select(cov.index_fill(0, first, 1e-30))[first]
    assert int(select(cov.index_fill(0, second, -1.0)).sum()) == int(0.05 * int(MASK.sum()))
    assert not select(cov, torch.zeros(N, dtype=torch.bool)).any()


def test_a_nan_is_not_taken_for_equality():
    """The loss sees the NaN in the scores and leaves the optimizer step out; the selection must not hide that."""
    assert select(torch.full((N,), float("nan"))).any()


@pytest.mark.parametrize("min_cov", [-0.5, 0.0, 0.3, 99.0])
def test_min_cov_takes_from_the_selection_and_adds_nothing(min_cov):
    cov = torch.randn(N, generator=torch.Generator().manual_seed(3))
    unbounded = select_kl_cov(cov, MASK, IDS, ratio=0.6, group=None)
    bounded = select_kl_cov(cov, MASK, IDS, ratio=0.6, group=None, min_cov=min_cov)
    assert torch.equal(bounded, unbounded & (cov > min_cov))
    assert (bounded != unbounded).any() == (min_cov > float(cov[unbounded].min()))


def outcome(scores: list[float]) -> UpdateOutcome:
    values = torch.tensor(scores)
    everything = torch.ones(len(scores), dtype=torch.bool)
    return UpdateOutcome(
        UpdateResult(1.0, 1e-3, []), Selection([~everything], [values], [everything], [torch.zeros(len(scores))])
    )


EQUAL, UNEQUAL, EMPTY, SPOILED = [0.0, 0.0], [0.0, 1.0], [], [float("nan"), float("nan")]


@pytest.mark.parametrize(
    ("algorithm", "scores", "expected"),
    [
        (KL_COV, [EQUAL, UNEQUAL, EQUAL, EMPTY, SPOILED], 2),
        (KL_COV, [UNEQUAL], 0),
        (replace(KL_COV, scope="rollout_batch"), [EQUAL, EQUAL], 1),
        (replace(KL_COV, scope="rollout_batch"), [[0.0, 0.0], [1.0, 1.0]], 0),
        (replace(KL_COV, scope="micro_batch"), [EQUAL], None),
        (CLIP_COV, [EQUAL], None),
        (GRPO, [EQUAL], None),
    ],
)
def test_selections_that_were_left_out_are_counted(algorithm, scores, expected):
    found = count_uninformative([outcome(values) for values in scores], algorithm, ParallelGroups())
    assert found == ({} if expected is None else {"selection/uninformative": expected})
    assert found.keys() <= TAGS.keys()
