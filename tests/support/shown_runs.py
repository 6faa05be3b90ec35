"""Run folders for pages and viewers: event files, samples with values of tokens, evaluations, configuration, alarms.

`mark` is put wherever text of a model, a user or a file can stand.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.event_file_writer import EventFileWriter

from megacov.config.yaml_text import dump_yaml
from megacov.monitor.alarm import Alarm
from megacov.monitor.alarms_file import AlarmsFile
from megacov.monitor.token_table import TokenRow, TokenTable

WORDS = ("The", " sum", " is", " 12", "\n", "So", " wait", ",", " therefore", " 7", ".", "")
CEILING, SLOPE = 1.2, 0.3
"""b - a and a of the law that the rewards follow."""


def write_events(folder: Path, scalars: Mapping[str, Mapping[int, float]]) -> None:
    """Write one event file with points by tag and step."""
    writer = EventFileWriter(str(folder))
    for tag, points in scalars.items():
        for step, value in points.items():
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            writer.add_event(Event(step=step, wall_time=1e9 + step, summary=summary))
    writer.close()


def write_run(folder: Path, *, mark: str = "", num_steps: int = 30, num_tokens: int = 20, num_samples: int = 4) -> Path:
    """Write a whole run whose metrics follow the entropy law.

    Args:
        folder: run folder to make.
        mark: text that is added to every text.
        num_steps: logged steps; each has samples.
        num_tokens: tokens of a response.
        num_samples: responses a step.

    Returns:
        The folder.
    """
    rng = random.Random(0)
    steps = range(1, num_steps + 1)
    entropy = {step: 0.1 + 1.4 * math.exp(-step / 10) for step in steps}
    reward = {step: SLOPE + CEILING - SLOPE * math.exp(entropy[step]) + rng.gauss(0, 0.005) for step in steps}
    tags = ("cov/mean", "cov/std", "cov/top_2pct", "selection/effective_ratio", "selection/count", "theorem/observed")
    others = (
        "cov_by_accuracy/covariance_000",
        "cov_by_position/covariance_00016",
        "rollout/length_mean",
        "rollout/length_max",
        "rollout/truncated_fraction",
        "rollout/mismatch_k1_abs",
    )
    noise = {tag: {step: rng.random() for step in steps} for tag in (*tags, *others)}
    named = {f"reward/mean_{mark}": reward} if mark else {}
    write_events(folder / "tensorboard", {"entropy/token_mean": entropy, "reward/mean": reward, **named, **noise})
    scores = {f"eval/sums{mark}/avg@4": {10: 0.25, 20: 0.5}, f"eval/sums{mark}/response_length": {10: 7.0, 20: 8.0}}
    write_events(folder / "tensorboard" / "evaluation", scores)
    results = {
        "sets": {f"sums{mark}": {"problems": 40, "scores": {"avg@4": {"value": 0.5, "low": 0.34, "high": 0.66}}}}
    }
    (folder / "evaluations").mkdir()
    (folder / "evaluations" / "step_20.json").write_text(json.dumps(results))
    config = {
        "run": {"name": f"sums_seed0{mark}", "seed": 0, "steps": num_steps},
        "algorithm": {"loss": {"name": "ppo_clip"}},
        "data": {"instruction": f"Add.{mark}"},
    }
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    row = TokenRow(5, f" sum{mark}", 900, 890, 77, 0.8125, 0.03125, 0.001953125)
    newest = TokenTable(num_steps, 10, 5000, 123, 0.5, {"selected": (row,), "lost": (row,)})
    (folder / "tokens.jsonl").write_text(json.dumps(asdict(newest)) + "\n")
    alarm = Alarm("collapse", 12, f"entropy is 0.4{mark}", f"it falls{mark}", f"choose kl_cov{mark}")
    AlarmsFile(folder).add([alarm])
    (folder / "samples").mkdir()
    for step in steps:
        write_samples(folder, step, [sample(rng, row, num_tokens, mark) for row in range(num_samples)])
    return folder


def write_samples(folder: Path, step: int, samples: list[dict[str, Any]]) -> None:
    """Write the file of one step."""
    text = "".join(json.dumps(each) + "\n" for each in samples)
    (folder / "samples" / f"step_{step:06d}.jsonl").write_text(text)


def sample(rng: random.Random, row: int, num_tokens: int, mark: str = "") -> dict[str, Any]:
    """One response with values of its tokens; every fourth is truncated."""
    texts = [rng.choice(WORDS) for _ in range(num_tokens - 1)] + [f"end{mark}"]

    def values(scale: float) -> list[float | None]:
        drawn = (float(f"{rng.gauss(0, scale):.4g}") for _ in range(num_tokens))
        return [None if rng.random() < 0.02 else value for value in drawn]

    return {
        "sample": row,
        "prompt": f"3 + 4 ={mark}",
        "response": "".join(texts),
        "answer": f"7{mark}",
        "reward": float(row % 2),
        "notable": [f"longest{mark}"] if row == 0 else [],
        "tokens": num_tokens,
        "finish_reason": "length" if row % 4 == 3 else "stop",
        "versions": ["0"],
        "staleness": 0,
        "token_texts": texts,
        "log_probs": values(1.0),
        "entropy": [None if value is None else abs(value) for value in values(1.0)],
        "covariance": values(0.5),
        "mismatch": values(0.05),
        "selected": [int(rng.random() < 0.1) for _ in range(num_tokens)],
        "kept": [int(rng.random() < 0.9) for _ in range(num_tokens)],
    }
