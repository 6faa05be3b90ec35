"""Files of RUN/samples as a run writes them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def sample_line(texts: Sequence[str] = ("six", " times", " seven", " is", " 42"), **fields: Any) -> dict[str, Any]:
    """The object of one response whose tokens have these texts.

    Token i has entropy i / 4 and covariance (-1)^i i / 10; the last one is selected, and the first is not in the loss.
    """
    count = len(texts)
    return {
        "sample": 0,
        "prompt": "What is 6*7?",
        "response": "".join(texts),
        "answer": "42",
        "reward": 1.0,
        "notable": [],
        "tokens": count,
        "finish_reason": "stop",
        "versions": ["3"],
        "staleness": 0,
        "token_texts": list(texts),
        "log_probs": [-math.log(i + 1) for i in range(count)],
        "entropy": [i / 4 for i in range(count)],
        "covariance": [(-1) ** i * i / 10 for i in range(count)],
        "mismatch": [None] * count,
        "selected": [int(i == count - 1) for i in range(count)],
        "kept": [int(i > 0) for i in range(count)],
    } | fields


def old_line(response: str, **fields: Any) -> dict[str, Any]:
    """The object of a response in a file without values of tokens."""
    line = sample_line((response,), **fields)
    return {name: line[name] for name in line if name in ("prompt", "response", "reward", "tokens", *fields)}


def write_step(run: Path, step: int, *lines: dict[str, Any]) -> Path:
    """Write a step's file."""
    path = run / "samples" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path
