"""Two sources in one run, each with its share, verifier, temperature and group size; and the run resumed elsewhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

from megacov.checkpoint.finished import FINISHED_NAME
from tests.end_to_end.test_train import KL_COV, SMALL, scalars_of
from tests.support.command import run

ROWS = Path("examples/sum_pairs/prompts.jsonl").read_text().splitlines()
SETTINGS = (
    *SMALL,
    "run.steps=2",
    "run.deterministic=true",
    "checkpoint.every=1",
    "monitor.samples_per_step=1000",
    "batch.updates_per_rollout=5",
)


def _sources(folder: Path) -> str:
    """Odd and even numbers; those of the second source are judged by length."""
    for name, rows in {"odd": ROWS[1:40:2], "even": ROWS[:40:2]}.items():
        (folder / f"{name}.jsonl").write_text("\n".join(rows))
    odd = f"{{name: odd, path: {folder}/odd.jsonl, weight: 3.0, samples_per_prompt: 4, temperature: 0.8}}"
    even = f"{{name: even, path: {folder}/even.jsonl, samples_per_prompt: 6, temperature: 1.25"
    return f"data.sources=[{odd}, {even}, verifier: 'tests.support.verifiers:length'}}]"


def _lines(folder: Path, step: int) -> list[dict]:
    text = (folder / "samples" / f"step_{step:06d}.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.dist
def test_two_sources_are_mixed_and_resumed_with_another_data_parallel_size(tmp_path: Path) -> None:
    folder, again = tmp_path / "run", tmp_path / "again"
    sources = ("data.path=null", _sources(tmp_path))
    ended = run("train", KL_COV, *SETTINGS, *sources, f"run.directory={folder}", log=tmp_path / "log")
    assert ended.code == 0, ended.output
    for step in (1, 2):
        lines = _lines(folder, step)
        names = list({line["prompt"]: line["source"] for line in lines}.values())
        assert (names.count("odd"), names.count("even")) == (6, 2)
        assert len(lines) == 6 * 4 + 2 * 6, "which do not divide by 5 optimizer steps"
        for line in lines:
            assert int(line["answer"]) % 2 == (line["source"] == "odd")
            assert line["source"] == "odd" or line["reward"] == len(line["response"])
    scalars = scalars_of(folder)
    assert scalars["rollout/share_odd"] == [0.75, 0.75]
    assert min(scalars["reward/mean_even"]) > max(scalars["reward/mean_odd"])
    # The trainer reads each sample at the temperature at which the server drew it.
    assert max(scalars["rollout/mismatch_max"]) < 1e-4
    assert scalars["entropy/token_mean"][0] != scalars["entropy/token_mean_t1"][0]

    # As if the run had been killed in its second step.
    shutil.copytree(folder, again, ignore=shutil.ignore_patterns("step_00000002", "v2", FINISHED_NAME))
    resumed = run("resume", str(again), "parallel.data=2", log=tmp_path / "again.log")
    assert resumed.code == 0, resumed.output
    assert "continuing after step 1" in resumed.output
    assert _lines(again, 2) == _lines(folder, 2)
    first, second = (load_file(each / "weights" / "v2" / "model.safetensors") for each in (folder, again))
    assert max(float((first[name] - second[name]).abs().max()) for name in first) < 1e-5, "a step moves weights by 1e-3"
