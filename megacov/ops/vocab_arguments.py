"""Arguments of the functions that read logits whose vocabulary is sharded over ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from megacov.ops.row_blocks import compute_dtype
from megacov.ops.vocab_range import VocabRange

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup


def prepare(
    logits: Tensor,
    targets: Tensor,
    temperature: float | Tensor,
    vocab_size: int | None,
    tp_group: ProcessGroup | None,
) -> tuple[VocabRange, float | Tensor]:
    """Check the arguments, and put the temperature into the form in which logits meet it.

    Args:
        logits: [..., v/tp] float.
        targets: [...] int64.
        temperature: positive; one for all, or [...].
        vocab_size: entries without padding; None for no padding.
        tp_group: ranks that hold the shards of the vocabulary, in order.

    Returns:
        The part of the vocabulary in this shard; and 1 / temperature, a number or [t] in the compute dtype.

    Raises:
        ValueError: as in `vocab_parallel_log_probs_and_entropy`.
    """
    _check_arguments(logits, targets, temperature)
    vocab = VocabRange.of_shard(logits.shape[-1], tp_group=tp_group, vocab_size=vocab_size)
    if targets.device.type == "cpu":
        _check_targets(targets, vocab.vocab_size)
    return vocab, _inverse(temperature, logits)


def _inverse(temperature: float | Tensor, logits: Tensor) -> float | Tensor:
    """1 / temperature: a number, or [t] in the compute dtype."""
    if not isinstance(temperature, torch.Tensor):
        return 1.0 / temperature
    # Rounded once, as a number is where it meets float32, so that equal temperatures give the same bits in both forms.
    return temperature.detach().double().reciprocal().to(compute_dtype(logits.dtype)).reshape(-1)


def _check_arguments(logits: Tensor, targets: Tensor, temperature: float | Tensor) -> None:
    if not logits.is_floating_point() or logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(
            f"logits are {logits.dtype} {tuple(logits.shape)}, but must be float [..., v/tp] with v/tp > 0"
        )
    if targets.dtype != torch.int64 or targets.shape != logits.shape[:-1]:
        raise ValueError(
            f"targets are {targets.dtype} {tuple(targets.shape)}, "
            f"but logits {tuple(logits.shape)} need int64 {tuple(logits.shape[:-1])}"
        )
    if isinstance(temperature, torch.Tensor):
        _check_temperatures(temperature, targets)
    elif not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature is {temperature}, but must be positive and finite")


def _check_temperatures(temperatures: Tensor, targets: Tensor) -> None:
    if not temperatures.is_floating_point() or temperatures.shape != targets.shape:
        raise ValueError(f"temperatures {tuple(temperatures.shape)} are no floats for targets {tuple(targets.shape)}")
    if temperatures.device.type == "cpu" and not ((temperatures > 0) & temperatures.isfinite()).all():
        raise ValueError("a temperature is not positive and finite")


def _check_targets(targets: Tensor, vocab_size: int) -> None:
    """All tp ranks hold equal targets, so they reach the same verdict without a collective."""
    is_outside = (targets < 0) | (targets >= vocab_size)
    if is_outside.any():
        raise ValueError(
            f"target {int(targets[is_outside][0])} is outside the vocabulary of {vocab_size} entries; "
            "check that the tokenizer belongs to this model"
        )
