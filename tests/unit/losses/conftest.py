"""Micro-batches for the loss tests, drawn from a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from megacov.types import LossBatch


@pytest.fixture
def make_batch() -> Callable[..., LossBatch]:
    """fn(num_tokens, seed=0, dtype=float64, **fields) -> LossBatch whose ratios spread well beyond PPO's range."""

    def make(num_tokens: int = 64, *, seed: int = 0, dtype: torch.dtype = torch.float64, **fields: object) -> LossBatch:
        generator = torch.Generator().manual_seed(seed)
        old_log_probs = -3 * torch.rand(num_tokens, generator=generator, dtype=dtype)
        batch = LossBatch(
            log_probs=old_log_probs + 0.4 * torch.randn(num_tokens, generator=generator, dtype=dtype),
            old_log_probs=old_log_probs,
            advantages=torch.randn(num_tokens, generator=generator, dtype=dtype),
            kept_mask=torch.rand(num_tokens, generator=generator) < 0.8,
            token_weights=torch.rand(num_tokens, generator=generator, dtype=dtype) / num_tokens,
            selected=torch.rand(num_tokens, generator=generator) < 0.2,
            entropy=3 * torch.rand(num_tokens, generator=generator, dtype=dtype),
            ref_log_probs=-3 * torch.rand(num_tokens, generator=generator, dtype=dtype),
            sequence_index=torch.arange(num_tokens) // 7,
            filtered_old_log_probs=old_log_probs + 0.3 * torch.rand(num_tokens, generator=generator, dtype=dtype),
            selection_weights=0.5 + 0.5 * torch.rand(num_tokens, generator=generator, dtype=dtype),
        )
        near = 0.7 + 0.6 * torch.rand(num_tokens, generator=generator, dtype=dtype)
        return with_sums(replace(batch, **{"old_entropy": batch.entropy * near, **fields}))

    return make


def with_sums(batch: LossBatch) -> LossBatch:
    """The batch with the sums of its sequences, one sequence at a time."""
    if batch.sequence_log_ratio is not None:
        return batch
    d = (batch.log_probs - batch.old_log_probs).detach()
    log_ratio, num_tokens = torch.zeros_like(d), torch.zeros_like(d)
    for index in batch.sequence_index.unique():
        own = batch.sequence_index == index
        log_ratio[own] = d[own & batch.kept_mask].sum()
        num_tokens[own] = (own & batch.kept_mask).sum().to(d.dtype)
    return replace(batch, sequence_log_ratio=log_ratio, sequence_tokens=num_tokens)


@pytest.fixture
def one_token() -> Callable[..., LossBatch]:
    """fn(advantage, ratio, selected=False) -> LossBatch of a single token with weight 1 and a gradient."""

    def make(advantage: float, ratio: float, *, selected: bool = False) -> LossBatch:
        return LossBatch(
            log_probs=torch.tensor([ratio], dtype=torch.float64).log().requires_grad_(),
            old_log_probs=torch.zeros(1, dtype=torch.float64),
            advantages=torch.tensor([advantage], dtype=torch.float64),
            kept_mask=torch.tensor([True]),
            token_weights=torch.ones(1, dtype=torch.float64),
            selected=torch.tensor([selected]),
            sequence_index=torch.tensor([0]),
            sequence_log_ratio=torch.tensor([ratio], dtype=torch.float64).log(),
            sequence_tokens=torch.ones(1, dtype=torch.float64),
            entropy=torch.ones(1, dtype=torch.float64),
            old_entropy=torch.ones(1, dtype=torch.float64),
        )

    return make
