"""Policy losses by name. To add one: write its equation in a file of its own, and a line here."""

from __future__ import annotations

from megacov.errors import ConfigError
from megacov.losses.clip_cov import clip_cov
from megacov.losses.kl_cov import kl_cov
from megacov.losses.loss import Loss
from megacov.losses.ppo_clip import ppo_clip, ppo_clipped_tokens

_LOSSES = (
    Loss("ppo_clip", ppo_clip, clipped_tokens=ppo_clipped_tokens),
    Loss("clip_cov", clip_cov, clipped_tokens=ppo_clipped_tokens, needs_selection=True),
    Loss("kl_cov", kl_cov, needs_selection=True),
)
_LOSS_BY_NAME = {loss.name: loss for loss in _LOSSES}


def get_loss(name: str) -> Loss:
    """The loss of that name.

    Args:
        name: as in `algorithm.loss.name`.

    Returns:
        A loss, to be called as loss(batch, **hyperparameters).

    Raises:
        ConfigError: no loss has that name.
    """
    if name not in _LOSS_BY_NAME:
        raise ConfigError(f"Loss {name!r} is unknown: set algorithm.loss.name to one of {', '.join(_LOSS_BY_NAME)}.")
    return _LOSS_BY_NAME[name]
