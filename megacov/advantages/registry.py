"""Advantage estimators by name. A new one needs a file in this folder, a line here, and a class of settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from megacov.advantages.group_relative import group_relative
from megacov.advantages.rloo import rloo

if TYPE_CHECKING:
    from torch import Tensor

ADVANTAGES: dict[str, Callable[..., Tensor]] = {"group_relative": group_relative, "rloo": rloo}
"""fn(rewards, group_ids, **hyperparameters) -> advantages, by its name in `algorithm.advantages`."""
