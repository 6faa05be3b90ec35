"""The suite of a run: its stop tokens reach the servers, code needs leave, and edited records are completed."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from megacov.config import load_config
from megacov.config.suite import SuiteSection
from megacov.data import load_tokenizer
from megacov.errors import ConfigError
from megacov.evaluation.run_suite import refuse_code
from megacov.trainer.rollout.evaluations import open_suite
from megacov.trainer.rollout.loop_thread import LoopThread
from tests.support.policies import TINY_POLICY
from tests.support.scripted_fleet import fleet_of, served
from tests.support.scripted_server import Call, Reply, completion

VOCAB_SIZE = 32
STEP = 4
FEW = {
    "name": "few",
    "path": "problems.jsonl",
    "prompt_field": "prompt",
    "chat_template": False,
    "verifier": "sum_pairs",
    "samples": 2,
    "max_response_length": 8,
    "extract": "text",
}


async def answer(call: Call) -> Reply:
    return Reply([completion([7], text="1", version=f"{STEP}-x")] * call.body["sampling_params"]["n"])


def evaluated(folder: Path, *overrides: str) -> list[dict[str, Any]]:
    """Evaluate a step of a run in the folder; the sampling parameters of all requests."""
    rows = Path("examples/sum_pairs/prompts.jsonl").read_text().splitlines()[:3]
    (folder / "problems.jsonl").write_text("\n".join(rows))
    (folder / "suite.yaml").write_text(json.dumps({"name": "small", "workers": 1, "sets": [FEW]}))
    section = json.dumps({"suite": f"{folder}/suite.yaml", "data": str(folder)})
    settings = [f"run.directory={folder}/run", f"evaluation={section}", *overrides]
    config = load_config("yaml_configs/runs/tiny_grpo.yaml", settings)
    with LoopThread() as loop, ExitStack() as stack:
        tokenizer = load_tokenizer(TINY_POLICY, vocab_size=VOCAB_SIZE)
        suite = open_suite(config, tokenizer, loop, stack, vocab_size=VOCAB_SIZE)
        assert suite is not None

        async def run() -> list[dict[str, Any]]:
            async with fleet_of(served(answer)) as (fleet, calls):
                await suite.evaluate(fleet, STEP)
                return [call.body["sampling_params"] for call in calls[0] if call.path == "/generate"]

        return loop.run(run())


def records_of(folder: Path) -> Path:
    return folder / "run" / "evaluations" / f"step_{STEP}.responses.jsonl"


def num_responses(folder: Path) -> list[int]:
    """Responses to each problem, as the file has them at its end: a later line counts in place of an earlier one."""
    lines = map(json.loads, records_of(folder).read_text().splitlines()[1:])
    return list({line["index"]: len(line["responses"]) for line in lines}.values())


def test_stop_tokens_of_the_run_are_sent_and_other_ones_begin_the_evaluation_anew(tmp_path):
    sent = evaluated(tmp_path, "rollout.stop_token_ids=[3, 5]")
    assert [each["stop_token_ids"] for each in sent] == [[3, 5]] * 3
    report = json.loads((records_of(tmp_path).parent / f"step_{STEP}.json").read_text())
    assert report["stop_token_ids"] == [3, 5]
    assert evaluated(tmp_path, "rollout.stop_token_ids=[3, 5]") == []
    assert len(evaluated(tmp_path)) == 3


@pytest.mark.parametrize("num_left", [0, 1, 3])
def test_a_problem_whose_record_has_not_all_responses_is_sampled_again(tmp_path, num_left):
    assert [each["n"] for each in evaluated(tmp_path)] == [2, 2, 2]
    path = records_of(tmp_path)
    lines = path.read_text().splitlines()
    edited = json.loads(lines[2])
    edited["responses"] = (edited["responses"] * 2)[:num_left]
    path.write_text("\n".join([*lines[:2], json.dumps(edited), *lines[3:]]) + "\n")
    assert num_responses(tmp_path).count(2) == 2
    assert [each["n"] for each in evaluated(tmp_path)] == [2]
    assert num_responses(tmp_path) == [2, 2, 2]
    assert evaluated(tmp_path) == []


@pytest.mark.parametrize(
    ("verifier", "arguments", "place"),
    [
        ("code", {}, "the verifier of the set few of evaluation.suite is code"),
        ("weighted", [("sum_pairs", {}), ("code", {})], "a part of the verifier of the set few of evaluation.suite is"),
        (
            "weighted",
            [("weighted", {"parts": [{"verifier": "code", "weight": 1}]})],
            "a part of a part of the verifier of the set few",
        ),
    ],
)
def test_code_needs_leave_also_inside_of_weighted(verifier, arguments, place):
    parts = [{"verifier": name, "weight": 1, "arguments": each} for name, each in arguments] if arguments else None
    given = {"verifier": verifier, "verifier_arguments": {"parts": parts} if parts else {}}
    suite = SuiteSection.model_validate({"name": "small", "sets": [FEW | {"name": "other"}, FEW | given]})
    with pytest.raises(ConfigError, match=f"{place}.*set rewards.allow_code=true, or use another suite"):
        refuse_code(suite, allow_code=False)
    refuse_code(suite, allow_code=True)
    refuse_code(SuiteSection.model_validate({"name": "small", "sets": [FEW]}), allow_code=False)
