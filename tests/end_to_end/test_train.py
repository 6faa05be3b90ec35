"""`megacov train` on real ranks with a real server: every layout trains, and a run ends cleanly when asked to."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path

import psutil
import pytest

from megacov.monitor.samples import TOKEN_FIELDS, read_samples
from megacov.monitor.tags import TAGS
from megacov.monitor.theorem_agreement import PREDICTIONS
from megacov.monitor.token_table import read_token_tables
from tests.support.command import descendants, run, started, still_there, wait_for_line
from tests.support.forked import name_of

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"
SMALL = (
    *("rollout.prompts_per_step=8", "batch.micro_batch_tokens=128"),
    *("monitor.cov_histogram_every=1", "monitor.token_table_every=2"),
    *("monitor.theorem_every=1", "monitor.theorem_gradient=true"),
)


def scalars_of(folder: Path) -> dict[str, list[float]]:
    """Scalars that a run has written to TensorBoard, by tag."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


SELECTED_BY_CURRENT = {f"perf/selection_{name}" for name in ("deferred", "kept_positions", "corrected")}
# Tags of every KL-Cov run; those that only some runs have are tested where they are computed.
ALWAYS = {
    tag
    for tag in TAGS
    if tag.split("/")[0] in ("entropy", "reward", "rollout", "perf")
    and TAGS[tag].kind == "scalar"
    and tag not in ("perf/save_s", "perf/selection_s", "perf/selection_correction_share", *SELECTED_BY_CURRENT)
} | {
    "health/skipped_updates",
    *(f"theorem/{name}" for name in ("observed", *PREDICTIONS)),
    *(f"cov/{name}" for name in ("mean", "std", "top_0.2pct", "top_50pct", "quadrant_pos_adv_high_lp")),
    *(f"selection/{name}" for name in ("count", "effective_ratio", "quadrant_pos_adv_high_lp")),
    *(f"policy/{name}" for name in ("loss", "k1", "k3", "ratio", "kl_penalty", "grad_norm", "lr")),
}
SELECTED_GLOBALLY = {f"selection/{name}" for name in ("threshold", "margin", "overlap_micro_batch")} | {
    "perf/selection_s"
}
LAYOUTS = {
    "tensor2_pipeline2": ("parallel.tensor=2", "parallel.pipeline=2", "parallel.sequence=true"),
    "tensor4": ("parallel.tensor=4",),
    "data2": ("parallel.data=2",),
    "micro_batch_scope": (
        "algorithm.selection.scope=micro_batch",
        "algorithm.old_log_probs=rollout",
        "batch.updates_per_rollout=1",  # so that every token's mismatch is taken before the weights move
    ),
    "rollout_batch_scope": ("parallel.data=2", "algorithm.selection.scope=rollout_batch", "rollout.temperature=0.9"),
    "context2_packed": ("parallel.context=2", "batch.packed=true", "model.recompute=full"),
    "tensor2_sequence": ("parallel.tensor=2", "parallel.sequence=true", "batch.packed=true"),
    "high_entropy": (
        "parallel.data=2",
        "algorithm.entropy_mask.keep=high",
        "algorithm.rollout_correction={level: token, mode: truncate}",
    ),
    "filtered": (
        "rollout.filter_groups=true",
        "rewards.verifier=tests.support.verifiers:length",
        "algorithm.selection.ratio=0.02",
        "algorithm.ref_kl_coef=0.01",
        "algorithm.entropy_coef=0.01",
    ),
}


# Layouts that tests/distributed proves, and whose settings the command passes on in another layout here.
PROVEN = ("tensor4", "data2", "tensor2_sequence")


@pytest.mark.dist
@pytest.mark.parametrize(
    "layout", [pytest.param(name, marks=[pytest.mark.slow] if name in PROVEN else []) for name in LAYOUTS]
)
def test_a_run_trains_and_writes_its_metrics(layout: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    ended = run(
        "train", KL_COV, "run.steps=2", f"run.directory={folder}", *SMALL, *LAYOUTS[layout], log=tmp_path / "log"
    )
    assert ended.code == 0, ended.output
    selects_few = layout == "filtered"
    for words in ("warning: algorithm.selection.ratio is 0.02", "warning: step 1: algorithm.selection.ratio is 0.02"):
        assert (words in ended.output) == selects_few
    assert ended.left == []
    assert "step 2/2" in ended.output
    assert "Traceback" not in ended.output
    scalars = scalars_of(folder)
    assert set(scalars) <= set(TAGS)
    assert set(scalars) >= ALWAYS | (SELECTED_GLOBALLY if layout != "micro_batch_scope" else set())
    assert (set(scalars) >= SELECTED_BY_CURRENT) == (not layout.endswith("_scope"))
    if layout == "filtered":  # one rank, for which there is room on any machine
        assert scalars["perf/selection_deferred"] == [1.0, 1.0] and min(scalars["perf/selection_kept_positions"]) > 0
    # A class of tokens may be empty in one of the steps.
    assert all(len(values) == 2 for tag, values in scalars.items() if not tag.startswith("cov_by_"))
    # The server samples with the weights that the trainer holds, in the first step and after an update.
    assert max(scalars["rollout/mismatch_max"]) < 1e-4
    assert scalars["selection/count"][0] > 0
    assert min(scalars["policy/grad_norm"]) > 0
    assert sorted(path.name for path in (folder / "weights").iterdir()) == ["owner.json", "v1", "v2"]
    samples = [json.loads(line) for line in (folder / "samples" / "step_000002.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and len({sample["prompt"] for sample in samples}) > 1
    assert {"best reward", "worst reward", "longest"} <= {reason for sample in samples for reason in sample["notable"]}
    last = ended.output.splitlines()[-6:]
    assert "has done all 2 steps" in ended.output and any(f"megacov samples {folder}" in line for line in last)
    assert all(set(sample) >= {"prompt", "response", "reward"} for sample in samples)
    _check_tokens(folder, scalars)


def _check_tokens(folder: Path, scalars: dict[str, list[float]]) -> None:
    """Every token of the shown responses has its values, which fit to the metrics of the step."""
    problems: list[str] = []
    samples = list(read_samples(folder, on_problem=problems.append))
    assert problems == [] and [sample.step for sample in samples] == [1] * 8 + [2] * 8
    for sample in samples:
        tokens = sample.tokens
        assert tokens is not None and sample.num_tokens > 0
        for name in TOKEN_FIELDS:
            assert len(tokens.texts if name == "token_texts" else getattr(tokens, name)) == sample.num_tokens
        assert "".join(tokens.texts).removesuffix("<eos>") == sample.response
        assert (tokens.log_probs < 0).all() and (tokens.entropy > 0).all()
        assert (abs(tokens.mismatch) < 1e-4).all() and not (tokens.selected & ~tokens.kept).any()
    (table,) = read_token_tables(folder)
    assert table.step == 2 and table.entropy == pytest.approx(scalars["entropy/token_mean"][1], rel=1e-5)
    assert sum(row.selected for row in table.lists["selected"]) == table.selected > 0
    for section in ("cov_by_accuracy", "cov_by_position"):
        shares = [scalars[tag][1] for tag in scalars if tag.startswith(f"{section}/tokens_")]
        assert sum(shares) == pytest.approx(1, rel=1e-6)


@pytest.mark.dist
def test_a_deterministic_run_repeats_itself_bit_by_bit(tmp_path: Path) -> None:
    runs = []
    # A started process has another hash seed and other states of random generators than a forked one.
    for name, real in (("forked", False), ("started", True)):
        folder = tmp_path / name
        overrides = (f"run.directory={folder}", "run.deterministic=true", "parallel.data=2", "run.steps=2")
        ended = run("train", KL_COV, *overrides, *SMALL, log=tmp_path / f"{name}.log", real=real)
        assert (ended.code, ended.left) == (0, []), ended.output
        lines = [line.rpartition("  s ")[0] for line in ended.output.splitlines() if "  step " in line]
        assert len(lines) == 2
        scalars = {tag: values for tag, values in scalars_of(folder).items() if not tag.startswith("perf/")}
        samples = (folder / "samples" / "step_000002.jsonl").read_text()
        runs.append((lines, scalars, samples, (folder / "weights" / "v2" / "model.safetensors").read_bytes()))
    assert runs[0] == runs[1]


@pytest.mark.dist
def test_a_second_run_of_a_name_moves_the_first_aside(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("run: {name: earlier}\n")
    (folder / "status.json").write_text("{}")
    ended = run("train", KL_COV, "run.steps=1", f"run.directory={folder}", *SMALL, log=tmp_path / "log")
    assert ended.code == 0, ended.output
    assert (tmp_path / "run.1" / "config.yaml").read_text() == "run: {name: earlier}\n"
    assert len(scalars_of(folder)["reward/mean"]) == 1


@pytest.mark.dist
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL], ids=lambda number: number.name)
def test_a_signal_ends_everything(number: signal.Signals, tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("train", KL_COV, "run.steps=1000", f"run.directory={tmp_path / 'run'}", "parallel.tensor=2", *SMALL)
    with started(*arguments, log=log) as process:
        wait_for_line(log, "step 2/", process)
        below = descendants(process.pid)
        assert {"rank 0", "rank 1", "serve", "verifier", "verifier guard"} == set(map(name_of, below))
        process.send_signal(number)
        code = process.wait(timeout=60)
        left = still_there(below)
    assert left == []
    assert code == {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75}.get(number, 128 + number)
    assert "Traceback" not in log.read_text()


@pytest.mark.dist
def test_a_killed_rank_ends_the_run(tmp_path: Path) -> None:
    log = tmp_path / "log"
    arguments = ("train", KL_COV, "run.steps=1000", f"run.directory={tmp_path / 'run'}", "parallel.data=2", *SMALL)
    with started(*arguments, log=log) as process:
        wait_for_line(log, "step 2/", process)
        below = descendants(process.pid)
        rank = next(child for child in below if name_of(child) == "rank 1")
        rank.kill()
        code = process.wait(timeout=60)
        left = still_there(below)
    assert left == []
    assert code == 128 + signal.SIGKILL
    assert "Traceback" not in log.read_text()


@pytest.mark.dist
def test_a_killed_server_ends_the_run_with_a_sentence(tmp_path: Path) -> None:
    log, folder = tmp_path / "log", tmp_path / "run"
    arguments = ("train", KL_COV, "run.steps=1000", f"run.directory={folder}", "parallel.tensor=2", *SMALL)
    with started(*arguments, "rollout.max_restarts=0", "checkpoint.every=1000", log=log) as process:
        wait_for_line(log, "step 2/", process)
        below = descendants(process.pid)
        server = next(child for child in below if name_of(child) == "serve")
        assert isinstance(server, psutil.Process)
        server.kill()
        code = process.wait(timeout=90)
        left = still_there(below)
    assert left == []
    assert code in (4, 5)  # whichever came first: a sample, or new weights
    sentences = [line for line in log.read_text().splitlines() if line.startswith("megacov: ")]
    assert len(sentences) == 1
    assert "server" in sentences[0]
    saved = re.search(r"step (\d+) is saved", sentences[0])
    assert saved, sentences
    assert len(scalars_of(folder)["reward/mean"]) == len(list(folder.glob("samples/step_*"))) == int(saved[1])
