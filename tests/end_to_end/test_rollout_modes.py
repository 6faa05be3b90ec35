"""Rollouts that go on beside training: how old samples are, and that a stopped run skips and repeats no prompt."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path

import pytest

from megacov.data import PromptStream, load_prompts, load_tokenizer
from megacov.rollout import load_carried
from tests.end_to_end.test_train import KL_COV, SMALL, scalars_of
from tests.support.command import run, started, wait_for_line

PROMPTS_PER_STEP, SAMPLES_PER_PROMPT = 8, 4
CORRECTED = "algorithm.rollout_correction={level: token, mode: truncate}"
SETTINGS = (
    *SMALL,
    CORRECTED,
    f"rollout.samples_per_prompt={SAMPLES_PER_PROMPT}",
    "monitor.samples_per_step=1000",
    "checkpoint.every=2",
)


def lines_of(folder: Path, step: int) -> list[dict]:
    """The samples that a step was trained on."""
    path = folder / "samples" / f"step_{step:06d}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def expected_prompts(number: int) -> list[str]:
    """The first prompts of the data in the order of the run."""
    model = Path("examples/tiny_policy")
    prompts = load_prompts(
        Path("examples/sum_pairs/prompts.jsonl"),
        load_tokenizer(model, vocab_size=16),
        vocab_size=16,
        chat_template=False,
        max_prompt_length=8,
    )
    return [prompt.text for prompt in PromptStream(prompts, seed=0).take(number)]


def stopped_and_resumed(folder: Path, *overrides: str) -> tuple[int, int]:
    """A run that is asked to leave after its third step and goes on for three more; the steps it stood at."""
    log = folder.with_suffix(".log")
    with started(
        "train", KL_COV, "run.steps=1000", f"run.directory={folder}", *SETTINGS, *overrides, log=log
    ) as process:
        wait_for_line(log, "step 3/", process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 75, log.read_text()
    assert "Traceback" not in log.read_text()
    stood = int(log.read_text().partition("asked to leave: step ")[2].split()[0])
    resumed = run("resume", str(folder), f"run.steps={stood + 3}", log=folder.with_suffix(".resumed.log"))
    assert resumed.code == 0, resumed.output
    assert resumed.left == [] and "Traceback" not in resumed.output
    return stood, stood + 3


@pytest.mark.dist
def test_sampling_a_step_ahead(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    stood, last = stopped_and_resumed(folder, "rollout.max_staleness=1", "parallel.data=2")
    scalars = scalars_of(folder)
    # Nothing was under way in the first step, and in the first after the resumption.
    fresh = [0, stood]
    lags = [float(step not in fresh) for step in range(last)]
    assert scalars["rollout/version_lag"] == scalars["rollout/version_lag_max"] == lags
    assert all((scalars["rollout/mismatch_max"][step] < 1e-4) == (step in fresh) for step in range(last))
    assert min(scalars["policy/grad_norm"]) > 0
    saved = [step for step in range(2, last, 2) if step != stood]  # each is reported once, by the next step
    assert len(scalars["perf/save_s"]) == len(saved)
    trained = [line for step in range(last) for line in lines_of(folder, step + 1)]
    expected = expected_prompts(last * PROMPTS_PER_STEP)
    assert [line["prompt"] for line in trained] == [text for text in expected for _ in range(SAMPLES_PER_PROMPT)]
    assert [line["staleness"] for line in trained[:: PROMPTS_PER_STEP * SAMPLES_PER_PROMPT]] == lags


@pytest.mark.dist
def test_partial_rollouts(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    partial = ("rollout.max_staleness=2", "rollout.extra_prompts=4", "rollout.filter_groups=false")
    _, last = stopped_and_resumed(folder, *partial, "parallel.tensor=2")
    scalars = scalars_of(folder)
    assert 1 <= max(scalars["rollout/version_lag_max"]) <= 2
    assert scalars["rollout/version_lag_max"][0] == 0
    assert min(scalars["rollout/carried"]) > 0
    # Where the rewards of every group are alike, nothing pulls and KL-Cov selects nothing.
    for step, norm in enumerate(scalars["policy/grad_norm"], 1):
        rewards = [line["reward"] for line in lines_of(folder, step)]
        groups = [rewards[first : first + SAMPLES_PER_PROMPT] for first in range(0, len(rewards), SAMPLES_PER_PROMPT)]
        assert (norm > 0) == any(len(set(group)) > 1 for group in groups), step
    newest = folder / "checkpoints" / f"step_{last:08d}"
    carried = load_carried((newest / "carried.jsonl").read_text())
    assert len(carried) == 4
    trained = [line["prompt"] for step in range(last) for line in lines_of(folder, step + 1)]
    assert len(trained) == last * PROMPTS_PER_STEP * SAMPLES_PER_PROMPT
    # Each prompt that was taken from the data was trained on with all its samples, or is still carried.
    taken = expected_prompts(json.loads((newest / "trainer.json").read_text())["prompt_position"])
    counts = Counter(trained) + Counter({group.prompt.text: SAMPLES_PER_PROMPT for group in carried})
    assert counts == Counter(dict.fromkeys(taken, SAMPLES_PER_PROMPT))
