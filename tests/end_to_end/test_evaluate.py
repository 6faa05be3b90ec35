"""`megacov evaluate` on the tiny policy: equal bytes for equal seeds, stopped and resumed, and with faults."""

from __future__ import annotations

import json
import shutil
import signal
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megacov.evaluation.tensorboard import FOLDER
from megacov.rollout.fleet.keys import write_keys
from tests.support.command import Ended, descendants, run, started, wait_for_line

MODEL = "examples/tiny_policy"
SUITE = "yaml_configs/suites/sum_pairs.yaml"


def _evaluate(out: Path, *options: str, target: str = MODEL, suite: str = SUITE) -> Ended:
    return run("evaluate", target, "--suite", suite, "--out", str(out), *options, log=out.with_suffix(".log"))


def _suite(folder: Path, **settings: object) -> str:
    """A suite of the sum-pairs set with some settings changed."""
    values = {
        "name": "sum_pairs",
        "path": "examples/sum_pairs/prompts.jsonl",
        "prompt_field": "prompt",
        "chat_template": False,
        "verifier": "sum_pairs",
        "samples": 4,
        "max_response_length": 8,
        "extract": "text",
    }
    path = folder / "suite.yaml"
    path.write_text(json.dumps({"name": "suite", "workers": 1, "timeout_s": 2.0, "sets": [values | settings]}))
    return str(path)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Path:
    """The results of one evaluation from start to end."""
    out = tmp_path_factory.mktemp("reference") / "out"
    ended = _evaluate(out)
    assert (ended.code, ended.left) == (0, []), ended.output
    assert "190 of 190 problems" in ended.output
    assert "sum_pairs" in ended.output
    return out


def test_equal_seeds_give_equal_bytes(reference, tmp_path):
    assert _evaluate(tmp_path / "again", "--concurrency", "2").code == 0
    assert (tmp_path / "again" / "results.json").read_bytes() == (reference / "results.json").read_bytes()


def _lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines() if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_an_evaluation_that_was_stopped_goes_on(reference, tmp_path, number):
    out, log = tmp_path / "out", tmp_path / "stopped.log"
    arguments = ("evaluate", MODEL, "--suite", SUITE, "--out", str(out))
    with started(*arguments, log=log) as process:
        deadline = time.monotonic() + 60
        while len(_lines(out / "responses.jsonl")) < 20:
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        process.send_signal(number)
        process.wait(timeout=30)
    before = _lines(out / "responses.jsonl")
    assert len(before) < 191, "it had ended before it was stopped"
    ended = _evaluate(out)
    assert ended.code == 0, ended.output
    assert "problems were finished before" in ended.output
    assert _lines(out / "responses.jsonl")[: len(before) - 1] == before[:-1], "finished problems are not sampled again"
    assert (out / "results.json").read_bytes() == (reference / "results.json").read_bytes()


def test_another_model_or_suite_is_refused_by_name(reference, tmp_path):
    out = shutil.copytree(reference, tmp_path / "out")
    ended = _evaluate(out, "--seed", "1")
    assert ended.code == 3
    assert "is of an evaluation with another seed (0 there, 1 now)" in ended.output
    ended = _evaluate(out, suite=_suite(tmp_path))
    assert ended.code == 3
    assert "another suite_digest" in ended.output
    model = shutil.copytree(MODEL, tmp_path / "model")
    (model / "generation_config.json").write_text("{}")
    ended = _evaluate(out, target=str(model))
    assert ended.code == 3
    assert "another model_digest" in ended.output
    fewer = shutil.copytree(reference, tmp_path / "fewer")
    first, *rest = (json.loads(line) for line in _lines(fewer / "responses.jsonl"))
    rest[0]["responses"].pop()
    (fewer / "responses.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in (first, *rest)))
    ended = _evaluate(fewer)
    assert ended.code == 3
    assert "holds 7 responses to problem" in ended.output
    assert (out / "results.json").read_bytes() == (reference / "results.json").read_bytes()


@pytest.mark.slow
def test_another_server_takes_over_from_one_that_dies(reference, tmp_path):
    out, log = tmp_path / "out", tmp_path / "died.log"
    with started("evaluate", MODEL, "--suite", SUITE, "--out", str(out), log=log) as process:
        deadline = time.monotonic() + 60
        while len(_lines(out / "responses.jsonl")) < 20:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        (server,) = [each for each in descendants(process.pid) if "serve" in each.cmdline() or "serve" in each.name()]
        server.kill()
        assert process.wait(timeout=120) == 0, log.read_text()
    assert "a rollout server is lost" in log.read_text()
    assert (out / "results.json").read_bytes() == (reference / "results.json").read_bytes()


def test_a_verifier_that_fails_scores_0_and_is_listed(tmp_path):
    suite = _suite(tmp_path, verifier="tests.support.verifiers:not_a_number", pass_at=[1])
    ended = _evaluate(tmp_path / "out", "--limit", "3", suite=suite)
    assert ended.code == 0, ended.output
    assert "warning: sum_pairs: the verifier tests.support.verifiers:not_a_number returned nan" in ended.output
    found = json.loads((tmp_path / "out" / "results.json").read_text())["sets"]["sum_pairs"]
    assert found["verifier_failures"] == {"not_finite": 12}
    assert [score["value"] for score in found["scores"].values()] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "options", "code", "complaint"),
    [
        ({"verifier": "no_such"}, (), 2, "no_such"),
        ({"sample": 3}, (), 2, "did you mean samples"),
        ({"path": "none.jsonl"}, (), 3, "the set sum_pairs needs the file none.jsonl"),
        ({}, ("--only", "b"), 2, "--only is b, and the suite suite has sum_pairs"),
        ({}, ("--server", "http://127.0.0.1:1", "--keys", "none.yaml"), 2, "--keys none.yaml cannot be read"),
        ({}, ("--server", "http://127.0.0.1:1\n"), 2, "write it without line breaks"),
        ({}, ("--keys", "none.yaml"), 2, "--keys is given without --server"),
        (
            {"verifier": "weighted", "verifier_arguments": {"parts": [{"verifier": "code", "weight": 1.0}]}},
            (),
            2,
            "a part of the verifier of the set sum_pairs is code",
        ),
    ],
)
def test_a_mistake_is_one_sentence(tmp_path, settings, options, code, complaint):
    ended = _evaluate(tmp_path / "out", *options, suite=_suite(tmp_path, **settings))
    assert (ended.code, ended.left) == (code, []), ended.output
    assert complaint in ended.output
    assert "Traceback" not in ended.output


def test_what_is_no_model_is_refused(tmp_path):
    ended = _evaluate(tmp_path / "out", target=str(tmp_path))
    assert ended.code == 3
    assert "no run folder (with config.yaml)" in ended.output


@pytest.mark.slow
def test_a_run_and_its_checkpoints(tmp_path):
    folder = tmp_path / "a_run"
    trained = run(
        "train",
        "yaml_configs/runs/tiny_grpo.yaml",
        "run.steps=2",
        "checkpoint.every=1",
        "rollout.prompts_per_step=8",
        f"run.directory={folder}",
        log=tmp_path / "train.log",
    )
    assert trained.code == 0, trained.output
    options = ("--suite", SUITE, "--limit", "8")
    for target, step in ((folder, 2), (folder / "checkpoints" / "step_1", 1)):
        ended = run("evaluate", str(target), *options, log=tmp_path / "evaluate.log")
        assert (ended.code, ended.left) == (0, []), ended.output
        out = folder / "evaluations" / f"step_{step}-sum_pairs-seed_0"
        assert json.loads((out / "results.json").read_text())["model"] == f"a_run-step_{step}"
        assert not list(out.glob("model_*")), "the exported model is removed"
    events = EventAccumulator(str(folder / FOLDER))
    events.Reload()
    assert sorted(event.step for event in events.Scalars("eval/sum_pairs/avg@8")) == [1, 2]
    ended = run("evaluate", str(folder), *options, "--server", "http://127.0.0.1:1", log=tmp_path / "server.log")
    assert ended.code == 2
    assert "run `megacov export` first" in ended.output


@pytest.mark.slow
def test_running_servers(tmp_path):
    port_file, log = tmp_path / "port", tmp_path / "serve.log"
    with started("serve", MODEL, "--port", "0", "--port-file", str(port_file), log=log) as server:
        wait_for_line(log, "Serving", server)
        address = f"http://127.0.0.1:{port_file.read_text().strip()}"
        ended = _evaluate(tmp_path / "out", "--limit", "8", "--server", address)
    assert ended.code == 0, ended.output
    assert "the servers follow no seeds" in ended.output
    assert json.loads((tmp_path / "out" / "results.json").read_text())["servers"] == {"engine": "running servers"}
    options = ("--limit", "9", "--server", address, "--start-timeout-s", "2")
    again = _evaluate(tmp_path / "out", *options)
    assert (again.code, again.left) == (4, []), again.output  # the server has ended


@pytest.mark.sglang
@pytest.mark.slow
def test_real_sglang(tmp_path):
    """Sampled and greedy sets; equal greedy responses to one problem, and log-probs that belong to them."""
    from tests.support.sglang_servers import sglang_servers  # it imports torch, which the other tests here do without

    suite = _suite(tmp_path, greedy=True, samples=1)
    with sglang_servers(1, tmp_path) as ((server,), keys):
        write_keys(keys, tmp_path / "keys.yaml")
        options = ("--server", server.address, "--keys", str(tmp_path / "keys.yaml"), "--limit", "8")
        sampled = _evaluate(tmp_path / "sampled", *options)
        greedy = _evaluate(tmp_path / "greedy", *options, suite=suite)
    assert (sampled.code, greedy.code) == (0, 0), sampled.output + greedy.output
    embedded = _evaluate(tmp_path / "embedded", "--limit", "8", suite=suite)
    assert embedded.code == 0, embedded.output
    ours, theirs = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("embedded", "greedy"))
    first, second = (each["sets"]["sum_pairs"] for each in (ours, theirs))
    assert first["scores"] == second["scores"]
    assert first["response_length"] == second["response_length"]
    assert first["negative_log_prob"] == pytest.approx(second["negative_log_prob"], abs=1e-4)
