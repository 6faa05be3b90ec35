"""`megacov predict` on real event files and tables, from the arguments to the exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from torch.utils.tensorboard import SummaryWriter
from typer.testing import CliRunner

from benchmarks.entropy_law import PAPER, SHAPES, autoregression
from megacov.cli.predict import predict
from megacov.config.load import dump_config, make_config
from megacov.errors import DataError, LawError
from megacov.monitor.entropy_law.figure import SIZE_INCHES
from megacov.monitor.figure_style import DOTS_PER_INCH
from megacov.monitor.tensorboard import MetricWriter
from tests.support.config_values import values

ENTROPIES = SHAPES["falls slowly"](np.linspace(0, 1, 100))
NOISE = 0.004 * autoregression(100, 1, 0.3, np.random.default_rng(0))[0]
REWARDS = 0.7 - 0.12 * np.exp(ENTROPIES) + NOISE


def run_predict(*arguments: object):
    app = typer.Typer()
    app.command()(predict)
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows(output: str) -> dict[str, str]:
    return {line[2:14].strip(): line[14:] for line in output.splitlines() if line.startswith("  ") and line[2:3] != " "}


@pytest.fixture
def make_run(tmp_path):
    """fn(name, **sections) -> folder of a run with this configuration and the curve of this module."""

    def make(name: str, *, rewards=REWARDS, **sections) -> Path:
        path = tmp_path / name
        config = dump_config(make_config(values(**sections)))
        with MetricWriter(path / "tensorboard") as writer:
            writer.write_config(config)
            for step, (entropy, reward) in enumerate(zip(ENTROPIES, rewards, strict=True)):
                scalars = {"entropy/token_mean": entropy, "reward/mean": reward, "reward/max": 1.0}
                writer.write_scalars(scalars, step=step)
        (path / "config.yaml").write_text(config)
        return path

    return make


def write_events(path: Path, **tags: tuple[range, np.ndarray]) -> Path:
    """An event folder as torch's writer makes it; in names, __ is a slash."""
    with SummaryWriter(str(path)) as writer:
        for tag, (steps, points) in tags.items():
            for step, value in zip(steps, points, strict=True):
                writer.add_scalar(tag.replace("__", "/"), value, step)
    return path


def test_a_run_of_megacov(make_run, tmp_path):
    picture = tmp_path / "new" / "law.png"
    result = run_predict(make_run("grpo"), "--output", picture)
    assert result.exit_code == 0, result.output
    found = rows(result.output)
    assert found["points"] == "100, steps 0 to 99"
    assert float(found["a"].split()[0]) == pytest.approx(0.12, abs=0.004)
    assert float(found["b"].split()[0]) == pytest.approx(0.7, abs=0.008)
    assert float(found["ceiling"].split()[0]) == pytest.approx(0.58, abs=0.004)
    assert found["early"].startswith("the first 15 points predict the others with RMSE 0.0")
    assert found["verdict"].startswith("holds: neither the curve nor the settings")
    image = Image.open(picture).convert("RGB")
    assert image.size == tuple(round(inches * DOTS_PER_INCH) for inches in SIZE_INCHES)
    colours = {colour: count for count, colour in image.getcolors(maxcolors=image.width * image.height)}
    assert colours[(0x00, 0x72, 0xB2)] > 1000


def test_an_intervention_ends_with_a_code_of_its_own(make_run):
    path = make_run("bonus", algorithm={"entropy_coef": 0.001})
    for source in (path, path / "tensorboard"):  # the configuration is among the events too
        result = run_predict(source, make_run("grpo"))
        assert isinstance(result.exception, LawError) and LawError.exit_code == 13
        assert f"refused for 1 of 2 runs ({source})" in str(result.exception)
        assert "algorithm.entropy_coef is 0.001" in result.output
        assert rows(result.output)["verdict"].startswith("holds")  # the second run, all the same
    result = run_predict(make_run("grpo"), "--given", "intervention")
    assert isinstance(result.exception, LawError)


def test_json_has_every_number_and_null_for_none(make_run):
    short = make_run("short")
    table = short.parent / "flat.csv"
    table.write_text("step,entropy,reward\n" + "".join(f"{step},0.5,{step / 50}\n" for step in range(40)))
    result = run_predict(short, table, "--json")
    assert isinstance(result.exception, LawError)
    run, flat = json.loads(result.output)["runs"]
    assert run["intervals"]["ceiling"]["low"] < run["ceiling"] < run["intervals"]["ceiling"]["high"]
    assert run["ceiling"] == pytest.approx(run["b"] - run["a"])
    assert run["early"]["num_points"] == 15 and run["verdict"]["outcome"] == "holds"
    assert (run["first_step"], run["last_step"], run["num_points"]) == (0, 99, 100)
    assert flat["a"] is None and flat["intervals"]["a"] == {"low": None, "high": None} and flat["early"] is None
    assert flat["verdict"]["reasons"][0]["kind"] == "narrow_range"


def test_verl_and_slime_and_tables(tmp_path):
    verl = write_events(
        tmp_path / "verl", actor__entropy=(range(1, 101), ENTROPIES), critic__score__mean=(range(1, 101), REWARDS)
    )
    slime = write_events(
        tmp_path / "slime",
        train__entropy_loss=(range(400), np.repeat(ENTROPIES, 4)),
        rollout__raw_reward=(range(100), REWARDS),
    )
    table = tmp_path / "table.csv"
    lines = (
        f"{step};{entropy};{reward}" for step, (entropy, reward) in enumerate(zip(ENTROPIES, REWARDS, strict=True))
    )
    table.write_text("\n".join(["update;H;aime", *lines]) + "\n")
    laws = []
    for source, options in (
        (verl, ()),
        (slime, ()),
        (table, ("--entropy", "H", "--reward", "aime", "--step", "update")),
    ):
        result = run_predict(source, *options)
        assert result.exit_code == 0, result.output
        assert "The settings of the run are not known" in result.output
        laws.append(rows(result.output)["ceiling"])
    assert laws[0] == laws[1] == laws[2]
    assert "means of 4 values" in run_predict(slime).output


def test_sizes_predict_the_largest(make_run):
    runs = []
    for size, (a, b) in PAPER.items():
        runs.append(make_run(f"qwen_{size:g}b", rewards=b - a * np.exp(ENTROPIES) + NOISE / 10))
    result = run_predict(*runs, "--sizes", ",".join(map(str, PAPER)))
    assert result.exit_code == 0, result.output
    assert "size 32, predicted from sizes 0.5, 1.5, 3, 7" in result.output
    last = result.output.splitlines()[-1].split()
    assert last[0] == "ceiling" and float(last[-1]) == pytest.approx(0.070, abs=0.002)
    result = run_predict(*runs[:2], "--sizes", "0.5,1.5", "--predict-size", 7, "--json")
    assert json.loads(result.output)["sizes"]["ceiling"]["error"] is None


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--entropy", "H"), r"has no scalar H: give --entropy one of entropy/token_mean"),
        (("--given", "rain"), r"--given rain is not a condition: give one of intervention, off-policy, changing-data"),
        (("--sizes", "1,2"), r"--sizes has 2 numbers and there are 1 runs"),
        (("--sizes", "big"), r"--sizes big is not a list of numbers"),
        (("--sizes", "7"), r"runs of 2 sizes beside 7, and there are 0"),
        (("--predict-size", "7"), r"give --sizes too"),
        (("--early", "15"), r"a share of 15 of the steps: give one between 0 and 1"),
        (("--output", "law.pdf"), r"let it end in \.png"),
    ],
)
def test_mistakes_are_one_sentence(make_run, options, sentence):
    result = run_predict(make_run("grpo"), *options)
    assert isinstance(result.exception, DataError)
    with pytest.raises(DataError, match=sentence):
        raise result.exception


def test_sources_that_cannot_be_read_are_one_sentence(make_run, tmp_path):
    assert isinstance(run_predict(tmp_path / "missing").exception, DataError)
    assert isinstance(run_predict(tmp_path / "missing.csv").exception, DataError)
    run = make_run("grpo")
    (run / "config.yaml").write_text("a: [")
    assert "restore the file" in str(run_predict(run).exception)


def test_damaged_events_are_named_and_the_rest_counts(make_run):
    run = make_run("grpo")
    (path,) = (run / "tensorboard").iterdir()
    path.write_bytes(path.read_bytes()[:-120])
    result = run_predict(run)
    assert result.exit_code == 0, result.output
    assert "cut off" in rows(result.output)["note"]
    assert rows(result.output)["points"] == "99, steps 0 to 98"


def test_the_verb_imports_nothing_heavy_until_it_runs_and_never_torch(make_run):
    run = make_run("grpo")
    code = f"""
import sys
import megacov.cli.predict
heavy = {{"torch", "matplotlib", "tensorboard", "numpy"}} & sys.modules.keys()
assert not heavy, heavy
from pathlib import Path
megacov.cli.predict.predict([Path({str(run)!r})], output=Path({str(run / "law.png")!r}))
assert "torch" not in sys.modules
"""
    root = Path(__file__).parents[3]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=120)
    assert (run / "law.png").is_file()


def test_a_file_without_a_whole_event_is_named(tmp_path):
    (tmp_path / "events.out.tfevents.1").write_bytes(b"no event" * 100)
    result = run_predict(tmp_path)
    assert isinstance(result.exception, DataError)
    assert "events.out.tfevents.1 is damaged" in str(result.exception)


def test_a_table_of_decimal_commas_is_named(tmp_path):
    path = tmp_path / "run.csv"
    path.write_text("step;entropy/token_mean;reward/mean\n1;0,5;0,2\n")
    result = run_predict(path)
    assert isinstance(result.exception, DataError)
    assert "a point and no comma" in str(result.exception)


def test_a_configuration_without_its_algorithm_says_nothing_about_the_law(make_run):
    path = make_run("broken")
    (path / "config.yaml").write_text("run: {name: broken}\n")
    assert "settings of the run are not known" in run_predict(path).output


def test_names_of_columns_cannot_steer_the_terminal(tmp_path):
    path, column = tmp_path / "table.csv", "\x1b]0;reward\x07"
    rows_ = "".join(
        f"{step},{entropy},{reward}\n" for step, (entropy, reward) in enumerate(zip(ENTROPIES, REWARDS, strict=True))
    )
    path.write_text(f"step,entropy,{column}\n{rows_}1,2,3\n")
    result = run_predict(path, "--entropy", "entropy", "--reward", column)
    assert "table.csv: \\x1b]0;reward\\x07 against entropy" in result.output
    assert result.output.replace("\n", "").isprintable()


def test_a_score_that_evaluations_of_the_run_have_written(make_run):
    path = make_run("grpo")
    with SummaryWriter(str(path / "tensorboard" / "evaluation")) as writer:
        for step in range(0, len(ENTROPIES), 4):
            writer.add_scalar("eval/AIME24/avg@8", 0.5 - 0.05 * np.exp(ENTROPIES[step]), step)
    result = run_predict(path, "--reward", "eval/AIME24/avg@8")
    assert f"{path}: eval/AIME24/avg@8 against entropy/token_mean" in result.output
    found = rows(result.output)
    assert found["points"] == "25, steps 0 to 96"
    assert float(found["a"].split()[0]) == pytest.approx(0.05, rel=1e-3)
    assert float(found["b"].split()[0]) == pytest.approx(0.5, rel=1e-3)
    assert "eval/AIME24/avg@8" in str(run_predict(path, "--reward", "eval/AIME24/avg@1").exception)
