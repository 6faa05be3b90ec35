"""The part of the vocabulary that a tensor-parallel rank holds.

Shapes: [v/tp] the columns of one shard, v the padded vocabulary. Shards are equally large and in rank order. The
padding is at the end of the vocabulary, so the real entries of a shard are its leading columns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from megacov.parallel.collectives import group_rank, group_size

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


@dataclass(frozen=True, slots=True)
class VocabRange:
    """Global ids [start, start + num_valid) are real entries of this shard; its other columns are padding.

    start: global id of column 0.
    num_valid: number of leading columns that are not padding; 0 if the whole shard is padding.
    vocab_size: number of real entries over all shards.
    """

    start: int
    num_valid: int
    vocab_size: int

    @classmethod
    def of_shard(cls, num_columns: int, *, tp_group: ProcessGroup | None, vocab_size: int | None) -> VocabRange:
        """The range of this rank's shard.

        Args:
            num_columns: v/tp, columns of this shard, padding included.
            tp_group: ranks that hold the shards, in order.
            vocab_size: entries of the vocabulary without padding; None if there is no padding.

        Returns:
            The range.

        Raises:
            ValueError: if the shards together cannot hold `vocab_size` entries.
        """
        padded_size = num_columns * group_size(tp_group)
        if vocab_size is None:
            vocab_size = padded_size
        if not 0 < vocab_size <= padded_size:
            raise ValueError(f"vocab_size is {vocab_size}, but the shards together have {padded_size} columns")
        start = num_columns * group_rank(tp_group)
        return cls(start=start, num_valid=min(max(vocab_size - start, 0), num_columns), vocab_size=vocab_size)

    def locate(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Find the columns of global ids in this shard.

        Args:
            targets: [...] int64 global ids.

        Returns:
            columns: [...] int64, always a valid column index; 0 for ids that this shard does not hold.
            is_held: [...] bool, whether the id is a real entry of this shard.
        """
        is_held = (targets >= self.start) & (targets < self.start + self.num_valid)
        return (targets - self.start).where(is_held, 0), is_held
