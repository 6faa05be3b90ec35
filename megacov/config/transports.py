"""How weights can reach the rollout servers; readable without torch."""

from __future__ import annotations

from typing import Literal

PauseMode = Literal["abort", "retract", "in_place"]
"""What happens to running requests while weights are replaced: the server ends them, recomputes their keys and values
afterwards, or keeps their keys and values."""
