"""Global ids of the columns of a shard."""

import pytest
import torch

from megacov.ops import VocabRange


@pytest.mark.parametrize(("vocab_size", "num_valid"), [(None, 8), (8, 8), (5, 5), (1, 1)])
def test_an_unsharded_vocabulary_is_one_range(vocab_size, num_valid):
    vocab = VocabRange.of_shard(8, tp_group=None, vocab_size=vocab_size)
    assert vocab == VocabRange(start=0, num_valid=num_valid, vocab_size=num_valid)


@pytest.mark.parametrize("vocab_size", [0, -1, 9])
def test_a_vocabulary_that_does_not_fit_is_refused(vocab_size):
    with pytest.raises(ValueError, match="8 columns"):
        VocabRange.of_shard(8, tp_group=None, vocab_size=vocab_size)


def test_locate_finds_held_ids_and_gives_a_safe_column_for_the_others():
    vocab = VocabRange(start=8, num_valid=3, vocab_size=11)
    columns, is_held = vocab.locate(torch.tensor([[7, 8, 10], [11, 15, -1]]))
    assert is_held.tolist() == [[False, True, True], [False, False, False]]
    assert columns.tolist() == [[0, 0, 2], [0, 0, 0]]
