"""Runs with a curriculum: resumed, with other numbers of prompts at once and of ranks, they draw the same prompts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.test_train import KL_COV, SMALL, scalars_of
from tests.support.command import run

STEPS, SAVED = 4, 2
SETTINGS = (
    *SMALL,
    "run.deterministic=true",
    "rewards.verifier=tests.support.verifiers:odd_length",
    "data.curriculum={low: 0.4, high: 0.6, min_samples: 4}",
    "rollout.filter_groups=true",
    "rollout.prompts_per_step=4",
    "rollout.samples_per_prompt=4",
    "monitor.samples_per_step=1000",
    "checkpoint.keep_every=1",
    f"checkpoint.every={SAVED}",
)


def weights(folder: Path) -> bytes:
    return (folder / "weights" / f"v{STEPS}" / "model.safetensors").read_bytes()


def prompts(folder: Path, step: int) -> list[str]:
    lines = (folder / "samples" / f"step_{step:06d}.jsonl").read_text().splitlines()
    return sorted(json.loads(line)["prompt"] for line in lines)


@pytest.mark.slow
@pytest.mark.dist
def test_a_resumed_run_equals_the_run_left_alone(tmp_path: Path) -> None:
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n}=", "answer": str(n)}) + "\n" for n in range(10, 22)))
    alone, stopped = tmp_path / "alone", tmp_path / "stopped"
    for folder, steps in ((alone, STEPS), (stopped, SAVED)):
        overrides = (*SETTINGS, f"data.path={data}", f"run.directory={folder}", f"run.steps={steps}")
        ended = run("train", KL_COV, *overrides, log=folder.with_suffix(".log"))
        assert ended.code == 0, ended.output
    wide = tmp_path / "wide"
    shutil.copytree(stopped, wide)
    ended = run("resume", str(stopped), f"run.steps={STEPS}", "rollout.over_sample=3.0", log=tmp_path / "resumed.log")
    assert ended.code == 0, ended.output
    assert weights(stopped) == weights(alone)
    name = Path("checkpoints") / f"step_{STEPS:08d}"
    assert (stopped / name / "curriculum.jsonl").read_bytes() == (alone / name / "curriculum.jsonl").read_bytes()
    skipped = scalars_of(alone)["curriculum/skipped"]
    assert len(skipped) == STEPS and sum(skipped[SAVED:]) > 0
    # Another data-parallel size: weights differ by rounding after its first step, but what that step draws does not.
    wider = (f"run.steps={SAVED + 1}", "parallel.data=2")
    ended = run("resume", str(wide), *wider, log=tmp_path / "wide.log")
    assert ended.code == 0, ended.output
    assert prompts(wide, SAVED + 1) == prompts(alone, SAVED + 1)
    assert scalars_of(wide)["curriculum/skipped"] == skipped[: SAVED + 1]
