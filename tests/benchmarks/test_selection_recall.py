"""Selection per micro-batch is the published formula, and is measured against a selection that no layout changes."""

import math

import pytest
import torch

from benchmarks.selection_recall import (
    METHODS,
    PICKS,
    RATIOS,
    covariances,
    jaccard,
    measure,
    published_kl_cov,
    recall,
    select,
)
from benchmarks.selection_recall_data import NUM_SAMPLES, chunks, gather, layout, make_batch
from benchmarks.selection_recall_figure import write_figure


@pytest.fixture(scope="module")
def batch():
    return make_batch(0, num_prompts=8, median_length=200)


def _layouts(batch):
    """Other micro-batches and other orders of the same tokens."""
    for dp_size, micro_batch_size in [(1, 64), (2, 8), (4, 16), (8, 3)]:
        yield gather(batch, layout(batch, dp_size, micro_batch_size))
    yield gather(batch, chunks(range(64), 7))


def test_every_layout_holds_every_token_once(batch):
    for parts in _layouts(batch):
        assert torch.equal(torch.cat(parts).sort().values, torch.arange(len(batch.log_probs)))


@pytest.mark.parametrize("name", METHODS)
def test_the_global_selection_is_the_same_in_every_layout(batch, name):
    first, *others = [
        select(covariances(batch, [torch.cat(parts)]), [torch.cat(parts)], METHODS[name]) for parts in _layouts(batch)
    ]
    assert first.any()
    assert all(torch.equal(first, other) for other in others)


@pytest.mark.parametrize(("name", "ratio"), RATIOS.items())
@pytest.mark.parametrize("size", [2, 8, 24, 64])
def test_local_selection_is_the_published_formula(batch, name, ratio, size):
    # Shuffled, so that no micro-batch holds a single advantage, where every covariance is zero.
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(1)).tolist()
    parts = [
        ids
        for ids in gather(batch, chunks(shuffled, size))
        if batch.advantages[ids].min() < batch.advantages[ids].max()
    ]
    assert len(parts) >= 32 // size
    selected = select(covariances(batch, parts), parts, METHODS[name])
    expected = torch.zeros_like(selected)
    for ids in parts:
        log_probs, advantages = batch.log_probs[ids].double(), batch.advantages[ids].double()
        cov = (log_probs - log_probs.mean()) * (advantages - advantages.mean())
        expected[ids[cov.topk(max(1, int(len(ids) * ratio))).indices]] = True
    assert torch.equal(selected, expected)
    assert torch.equal(selected, published_kl_cov(batch, parts, ratio))


def test_one_sequence_a_micro_batch_has_no_covariance(batch):
    parts = gather(batch, chunks(range(64), 1))
    cov = covariances(batch, parts)
    assert not cov.any()
    assert not select(cov, parts, METHODS[PICKS]).any()


def test_one_micro_batch_finds_everything(batch):
    rows = measure(batch, [1, 16, 64], sort=False)
    for name in METHODS:
        one, many, _ = rows[name]
        assert all(value == 1.0 or math.isnan(value) for value in one)
        assert many[:2] != [1.0, 1.0]
    quota = max(1, int(2e-4 * len(batch.log_probs)))
    # Micro-batches of one sequence have less than 5000 tokens: each takes its one.
    assert rows["KL-Cov 2e-4 (32B)"][2][2] == pytest.approx(64 / quota)


def test_recall_precision_and_overlap_of_known_sets():
    wanted, found = torch.tensor([True, True, True, True, False]), torch.tensor([True, False, False, False, True])
    assert recall(found, wanted) == 0.25
    assert recall(wanted, found) == 0.5
    assert jaccard(found, wanted) == pytest.approx(0.2)


def test_the_tokens_are_as_the_page_says(batch):
    again = make_batch(0, num_prompts=8, median_length=200)
    assert torch.equal(batch.log_probs, again.log_probs)
    assert (batch.log_probs <= 0).all()
    assert batch.log_probs.median() > -0.02
    assert batch.log_probs.min() < -3
    by_sequence = batch.advantages.split(batch.lengths.tolist())
    assert all((one == one[0]).all() for one in by_sequence)
    by_group = torch.stack([one[0] for one in by_sequence]).view(-1, NUM_SAMPLES)
    assert torch.allclose(by_group.mean(1), torch.zeros(8), atol=1e-6)
    assert torch.allclose(by_group.std(1), torch.ones(8), atol=1e-4)


def test_the_figure_is_written(tmp_path):
    series = {1: [1.0, 1.0], 2: [0.5, 0.7]}
    path = tmp_path / "new" / "recall.png"
    write_figure({"in data order": {"KL-Cov": series}}, [[1.0, 0.3], [0.3, 1.0]], ["1 x 2", "2 x 1"], path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
