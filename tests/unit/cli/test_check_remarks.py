"""Warnings of `megacov check` that look at the data and the servers' context."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from megacov.cli.check_plan import plan_run, problems
from megacov.cli.check_remarks import remarks
from megacov.config import load_config

TINY = "yaml_configs/runs/tiny_grpo.yaml"
SGLANG = ("rollout.engine=sglang", "rollout.servers=1")


def remarks_of(*overrides: str) -> list[str]:
    return remarks(plan_run(load_config(TINY, overrides)))


@pytest.mark.parametrize(("prompt", "response", "cut"), [(8, 54, 0), (8, 55, 1), (8, 56, 2)])
def test_sglang_leaves_two_tokens_of_its_context_free(prompt: int, response: int, cut: int) -> None:
    lengths = [f"data.max_prompt_length={prompt}", f"rollout.max_response_length={response}"]
    found = [each for each in remarks_of(*lengths, *SGLANG) if "SGLang leaves 2 tokens free" in each]
    assert len(found) == (cut > 0)
    if found:
        assert f"the longest sequences lose {cut} and count as truncated" in found[0]
        assert "lower rollout.max_response_length to 54." in found[0]
    # The embedded server fills its context, and a longer sequence is impossible.
    assert not [each for each in remarks_of(*lengths) if "free" in each]
    longer = plan_run(load_config(TINY, ["data.max_prompt_length=8", "rollout.max_response_length=57", *SGLANG]))
    assert not [each for each in remarks(longer) if "free" in each]
    assert any("servers refuse more than 64 tokens" in each for each in problems(longer))


def test_the_context_may_be_an_argument_of_the_servers() -> None:
    longest = ["data.max_prompt_length=8", "rollout.max_response_length=24", *SGLANG]
    shorter = remarks_of(*longest, "rollout.server_arguments={context-length: 32}")
    assert any("context is 32, of which SGLang leaves 2" in each for each in shorter)
    assert not [each for each in remarks_of(*longest) if "free" in each]


@pytest.mark.parametrize(
    ("num_prompts", "extra", "repeats"), [(4, 0, False), (3, 0, True), (4, 1, True), (5, 1, False)]
)
def test_a_step_that_holds_a_prompt_twice_is_named(tmp_path: Path, num_prompts: int, extra: int, repeats: bool) -> None:
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "1=", "answer": "1"}\n\n' * num_prompts)
    partial = [f"rollout.extra_prompts={extra}", "rollout.max_staleness=2", "run.deterministic=false"]
    found = [
        each
        for each in remarks_of(f"data.path={path}", "rollout.prompts_per_step=4", *(partial if extra else []))
        if "several times" in each
    ]
    assert len(found) == repeats
    if repeats:
        assert f"data.path has {num_prompts} prompts and rollout.prompts_per_step is 4" in found[0]
        assert ("rollout.extra_prompts 1" in found[0]) == bool(extra)


def test_data_that_is_not_here_is_not_looked_at(tmp_path: Path) -> None:
    assert not [each for each in remarks_of(f"data.path={tmp_path / 'gone.jsonl'}") if "several times" in each]
    assert not [each for each in remarks_of(f"data.path={tmp_path}") if "several times" in each]


def test_each_source_has_the_prompts_of_its_share(tmp_path: Path) -> None:
    for name, number in {"few": 2, "enough": 6}.items():
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "1=", "answer": "1"}\n' * number)
    few, enough = (f"{{name: {name}, path: {tmp_path}/{name}.jsonl, weight:" for name in ("few", "enough"))
    found = remarks_of("data.path=null", f"data.sources=[{few} 1.0}}, {enough} 2.0}}]", "rollout.prompts_per_step=9")
    (repeated,) = [each for each in found if "several times" in each]
    assert "source few of data.sources has 2 prompts and a share of 0.333 of the 9 prompts of a step" in repeated


CONTROLLED = (
    "algorithm.loss={name: kl_cov, kl_coef: 1.0}",
    "algorithm.selection={name: kl_cov, ratio: 0.1, allow_large_ratio: true}",
    "algorithm.controller={name: pi, target_entropy: 0.5, acts_on: kl_coef, bounds: {lower: 0.5, upper: 8.0}}",
)


@pytest.mark.parametrize(
    ("proportional", "integral", "finding"),
    [
        (0.5, 0.1, None),
        (8.0, 2.0, "swings without end: gains 0.[0-9]+ times as large settle"),
        (0.1, 0.0, "stays away"),
        (50.0, 0.0, "swings without end: lower gains.proportional and raise gains.integral"),  # all smaller ones miss
    ],
)
def test_gains_that_a_simulation_finds_wrong_are_named(
    proportional: float, integral: float, finding: str | None
) -> None:
    gains = f"algorithm.controller.gains={{proportional: {proportional}, integral: {integral}}}"
    found = [each for each in remarks_of(*CONTROLLED, gains) if "algorithm.controller.gains" in each]
    assert len(found) == (finding is not None)
    if finding is not None:
        assert f"are {proportional:g} (proportional) and {integral:g} (integral)" in found[0]
        assert re.search(finding, found[0])
    factor = re.search("gains (0.[0-9]+) times", *found) if finding is not None else None
    if factor is not None:  # the advice is true
        lower = [f"{name}: {gain * float(factor[1])}" for name, gain in (("proportional", 8.0), ("integral", 2.0))]
        gains = f"algorithm.controller.gains={{{', '.join(lower)}}}"
        assert not [each for each in remarks_of(*CONTROLLED, gains) if "algorithm.controller.gains" in each]
