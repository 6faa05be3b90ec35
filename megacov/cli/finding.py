"""One part of a machine, as `megacov doctor` tells of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "absent" and "broken" parts can be done without; "wrong" ones cannot.
State = Literal["found", "absent", "broken", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One part of the machine. `found` tells what is there, or why what is there does not serve."""

    part: str
    state: State
    found: str
    used_for: str
    without: str
