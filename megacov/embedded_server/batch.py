"""Generations that decode together, and their attention keys and values.

Shape legend: b running generations, l cached positions (left-padded), v vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from megacov.embedded_server.generation import Generation
from megacov.embedded_server.sampling import SamplingPlan


@dataclass(frozen=True, slots=True)
class PromptRow:
    """One row of a prefill: tokens to process, and the generations that continue from there.

    The n copies of a new prompt share a row. A generation that lost its cache has its own row.
    """

    token_ids: list[int]
    generations: list[Generation]


def shares_row(generation: Generation, other: Generation) -> bool:
    """Whether both are copies of one prompt without any token yet, so that one prefill row serves both."""
    return generation.request is other.request and not generation.output_ids and not other.output_ids


def prompt_rows(generations: Iterable[Generation]) -> list[PromptRow]:
    """Group generations into rows of a prefill.

    Args:
        generations: generations without a cache; copies of one request are adjacent.

    Returns:
        The rows, with the same generations in the same order.
    """
    rows: list[PromptRow] = []
    for generation in generations:
        if rows and shares_row(rows[-1].generations[-1], generation):
            rows[-1].generations.append(generation)
        else:
            rows.append(PromptRow([*generation.request.prompt_ids, *generation.output_ids], [generation]))
    return rows


class RunningBatch:
    """Generations with their caches. The newest token of each is not cached yet.

    generations: the b generations, in row order.
    plan: sampling parameters of the rows.
    """

    def __init__(self, generations: list[Generation], cache: DynamicCache, mask: Tensor) -> None:
        """Take ownership of a cache.

        Args:
            generations: generations in row order.
            cache: keys and values of each layer, [b, heads, l, head size].
            mask: [b, l] int64, 1 where a position is cached and 0 where it is padding.
        """
        self.generations = generations
        self.plan = SamplingPlan.of([generation.request.params for generation in generations])
        self._cache = cache
        self._mask = mask

    def decode(self, model: PreTrainedModel) -> Tensor:
        """Feed the newest token of every generation, and return [b, v] logits of the next ones."""
        tokens = torch.tensor([[generation.output_ids[-1]] for generation in self.generations])
        positions = self._mask.sum(-1, keepdim=True)
        self._mask = F.pad(self._mask, (0, 1), value=1)
        logits: Tensor = model(
            input_ids=tokens,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits
        return logits[:, -1]

    def keep(self, rows: list[int]) -> None:
        """Drop all rows but those with these increasing indices, and columns that are padding in every kept row."""
        if len(rows) == len(self.generations):
            return
        self.generations = [self.generations[row] for row in rows]
        index = torch.tensor(rows)
        self.plan = self.plan.take(index)
        mask = self._mask.index_select(0, index)
        first = int(mask.argmax(-1).min())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys.index_select(0, index)[:, :, first:]
            layer.values = layer.values.index_select(0, index)[:, :, first:]

    def extend(self, other: RunningBatch) -> None:
        """Append the rows of another batch, which must not be used afterwards; the shorter is padded on the left."""
        width = max(self._mask.shape[1], other._mask.shape[1])
        self.generations = self.generations + other.generations
        self.plan = SamplingPlan.of([generation.request.params for generation in self.generations])
        mine, theirs = width - self._mask.shape[1], width - other._mask.shape[1]
        self._mask = torch.cat([F.pad(self._mask, (mine, 0)), F.pad(other._mask, (theirs, 0))])
        for layer, other_layer in zip(self._cache.layers, other._cache.layers, strict=True):
            layer.keys = torch.cat([_pad_left(layer.keys, mine), _pad_left(other_layer.keys, theirs)])
            layer.values = torch.cat([_pad_left(layer.values, mine), _pad_left(other_layer.values, theirs)])


def _pad_left(states: Tensor, num_positions: int) -> Tensor:
    return F.pad(states, (0, 0, num_positions, 0)) if num_positions else states


def prefill(model: PreTrainedModel, rows: list[PromptRow]) -> tuple[RunningBatch, Tensor]:
    """Process each row once, however many generations share it; fill in prompt log-probs where requested.

    Args:
        model: causal language model.
        rows: at least one row.

    Returns:
        The batch of all generations of the rows in order, and [b, v] logits of their next tokens.
    """
    lengths = [len(row.token_ids) for row in rows]
    width = max(lengths)
    tokens = torch.tensor([[0] * (width - len(row.token_ids)) + row.token_ids for row in rows])
    mask = (torch.arange(width) >= width - torch.tensor(lengths).unsqueeze(1)).long()
    wants_all_logits = any(_wants_input_log_probs(row) for row in rows)
    cache = DynamicCache()
    logits: Tensor = model(
        input_ids=tokens,
        attention_mask=mask,
        position_ids=(mask.cumsum(-1) - 1).clamp_min(0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=0 if wants_all_logits else 1,
    ).logits
    for index, row in enumerate(rows):
        if _wants_input_log_probs(row):
            row_logits = logits[index, -len(row.token_ids) : -1].float()
            targets = torch.tensor(row.token_ids[1:], dtype=torch.int64).unsqueeze(1)
            row.generations[0].request.input_log_probs = (
                row_logits.log_softmax(-1).gather(-1, targets).squeeze(1).tolist()
            )
    copies = torch.tensor([len(row.generations) for row in rows])
    for layer in cache.layers:
        layer.keys = layer.keys.repeat_interleave(copies, dim=0)
        layer.values = layer.values.repeat_interleave(copies, dim=0)
    generations = [generation for row in rows for generation in row.generations]
    batch = RunningBatch(generations, cache, mask.repeat_interleave(copies, dim=0))
    return batch, logits[:, -1].repeat_interleave(copies, dim=0)


def _wants_input_log_probs(row: PromptRow) -> bool:
    request = row.generations[0].request
    return request.wants_input_log_probs and request.input_log_probs is None
