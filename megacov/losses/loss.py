"""What every policy loss shares: masking, weighting and summing, so that a loss itself is only its equation.

t: response tokens of one micro-batch, laid flat. d = log_probs - old_log_probs, the log of the importance ratio.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from megacov.errors import ConfigError
from megacov.losses.kl import estimate_kl
from megacov.types import LossBatch, LossOutput


@dataclass(frozen=True)
class TokenLosses:
    """What the equation of a loss yields: a value per token, nothing masked, weighted or summed yet.

    losses: [t] float, carries the gradient.
    metrics: [t] float or bool each, detached; their means over loss tokens are logged as `policy/<key>`.
    """

    losses: Tensor
    metrics: dict[str, Tensor]


@dataclass(frozen=True)
class Loss:
    """A policy loss under its registered name; call it with a batch and its hyperparameters.

    name: as in `algorithm.loss.name`.
    token_losses: the equation, fn(batch, **hyperparameters); it may trust that masked tokens hold 0.
    needs_selection: True where `LossBatch.selected` must be given.
    clipped_tokens: fn(batch, **hyperparameters) -> [t] bool, tokens that a clip leaves without gradient; None if none.
    """

    name: str
    token_losses: Callable[..., TokenLosses]
    needs_selection: bool = False
    clipped_tokens: Callable[..., Tensor] | None = None

    def __call__(self, batch: LossBatch, **hyperparameters: Any) -> LossOutput:
        """The weighted sum of the token losses, and the sums of the token metrics over loss tokens.

        loss = sum_i token_weights_i * token_losses_i
        Besides the loss's own metrics there are, with samples drawn from the old policy: `k1` = -d and
        `k3` = exp(d) - 1 - d, both unbiased for KL(old || new); `k1_abs` = |d|; `ratio` = exp(d).

        Args:
            batch: [t] tensors of one micro-batch.
            **hyperparameters: of this loss, named as its config fields.

        Returns:
            The scalar loss in the dtype of log_probs, and metrics as float64 scalars.

        Gradient: to batch.log_probs; exactly 0 at masked tokens, whatever they hold.

        Raises:
            ConfigError: the loss acts on selected tokens but none were selected, or a hyperparameter is out of range.
        """
        if self.needs_selection and batch.selected is None:
            raise ConfigError(f"Loss {self.name} acts on selected tokens: set algorithm.selection.name to a selection.")
        batch = zero_masked_tokens(batch)
        tokens = self.token_losses(batch, **hyperparameters)
        metrics = {**_ratio_metrics(batch), **tokens.metrics}
        return LossOutput(
            loss=(batch.token_weights * tokens.losses).sum(),
            metrics={key: sum_over_loss_tokens(values, batch.loss_mask) for key, values in metrics.items()},
        )

    @torch.no_grad()
    def clipped(self, batch: LossBatch, **hyperparameters: Any) -> Tensor:
        """Loss tokens that PPO's clip already leaves without gradient, so that Clip-Cov need not pick them.

        Args:
            batch: [t] tensors; log_probs, old_log_probs, advantages and loss_mask are read.
            **hyperparameters: of this loss, the same as in the call.

        Returns:
            [t] bool; all False for a loss that does not clip.

        Gradient: none.
        """
        if self.clipped_tokens is None:
            return torch.zeros_like(batch.loss_mask)
        return self.clipped_tokens(zero_masked_tokens(batch), **hyperparameters) & batch.loss_mask


def zero_masked_tokens(batch: LossBatch) -> LossBatch:
    """The batch with 0 at every token outside `loss_mask`.

    It must happen before the first exp: a NaN that is masked after exp still turns the gradient into 0 * NaN = NaN.

    Args:
        batch: [t] tensors; read only.

    Returns:
        A batch whose loss tokens are unchanged. What a loss does not read is handed on as it is.
    """

    def keep(values: Tensor) -> Tensor:
        return torch.where(batch.loss_mask, values, 0.0)

    return replace(
        batch,
        log_probs=keep(batch.log_probs),
        old_log_probs=keep(batch.old_log_probs),
        advantages=keep(batch.advantages),
        token_weights=keep(batch.token_weights),
    )


def sum_over_loss_tokens(values: Tensor, loss_mask: Tensor) -> Tensor:
    """Sum of values at loss tokens, for logging.

    Args:
        values: [t] float or bool; read only.
        loss_mask: [t] bool.

    Returns:
        Scalar float64.

    Gradient: none.
    """
    return torch.where(loss_mask, values.detach().double(), 0.0).sum()


@torch.no_grad()
def _ratio_metrics(batch: LossBatch) -> dict[str, Tensor]:
    """How far the policy has moved from the one that the old log-probs belong to, per token."""
    d = batch.log_probs - batch.old_log_probs
    return {"k1": -d, "k1_abs": d.abs(), "k3": estimate_kl(d, estimator="k3"), "ratio": d.exp()}
