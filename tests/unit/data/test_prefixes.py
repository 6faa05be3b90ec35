"""Samples cut off behind a token: every prefix once over the ranks, with the tokens that the whole sample has."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import MicroBatchSettings, micro_batches_of
from megacov.data.prefixes import Prefixes
from megacov.types import MicroBatch
from tests.support.policies import make_rollout_batch

BATCH, SAMPLES = make_rollout_batch(), range(4, 12)
STRIDE = BATCH.max_response_length
# Two tokens of sample 7, and the first token of sample 10.
LENGTHS = {7: 2, 10: 1}
TOKEN_IDS = torch.tensor([7 * STRIDE, 7 * STRIDE + 1, 10 * STRIDE])


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_all_ranks_together_hold_each_prefix_once(packed: bool, ranks: int) -> None:
    layout = SequenceLayout(packed=packed)
    alone = micro_batches_of(BATCH, MicroBatchSettings(24, layout), SAMPLES)
    whole = {token_id: values for part in alone for token_id, *values in _of(part)}
    seen = []
    for rank in range(ranks):
        settings = MicroBatchSettings(24, layout, dp_rank=rank, dp_size=ranks)
        found = Prefixes(BATCH, settings, SAMPLES).micro_batches(TOKEN_IDS)
        assert len(found) > 0
        for token_id, *values in (one for part in found for one in _of(part)):
            seen.append(token_id)
            assert values == whole[token_id]
    assert sorted(seen) == [sample * STRIDE + place for sample, length in LENGTHS.items() for place in range(length)]


def _of(part: MicroBatch) -> Iterator[tuple[int, int, list[int]]]:
    """Id, target and all tokens before it, of each response token."""
    flat, positions = part.tokens.flatten(), part.positions.flatten()
    for token_id, place in zip(part.token_ids, part.predicting.tolist(), strict=True):
        before = flat[place - int(positions[place]) : place + 1].tolist()
        yield int(token_id), int(part.targets.flatten()[place]), before


def test_the_share_counts_prompts_of_prefixes_alone() -> None:
    prefixes = Prefixes(BATCH, MicroBatchSettings(24, SequenceLayout()), SAMPLES)
    held = sum(int(BATCH.prompt_lengths[i]) + length - 1 for i, length in LENGTHS.items())
    whole = sum(int(BATCH.prompt_lengths[i] + BATCH.response_lengths[i]) - 1 for i in SAMPLES)
    assert prefixes.share(TOKEN_IDS) == pytest.approx(held / whole)
    assert prefixes.share(TOKEN_IDS[:0]) == 0.0


def test_ranks_have_as_many_micro_batches_as_schedule_and_experts_want() -> None:
    settings = MicroBatchSettings(4, SequenceLayout(), dp_rank=1, dp_size=2, count_multiple=2, same_count=True)
    assert len(Prefixes(BATCH, settings, SAMPLES).micro_batches(TOKEN_IDS[2:])) == 2
