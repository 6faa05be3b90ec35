"""One part of a machine, as `megacov doctor` shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# megacov can run without "absent" and "broken" parts, but not with "wrong" ones.
State = Literal["found", "absent", "broken", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One part of the machine. `found` describes the part, or says why it cannot be used."""

    part: str
    state: State
    found: str
    used_for: str
    without: str
