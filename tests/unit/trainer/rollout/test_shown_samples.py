"""The few responses that people read show more than one prompt and the extremes of a step."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from megacov.trainer.rollout.shown_samples import representative
from megacov.trainer.run_folder import write_samples
from megacov.types import Completion, FinishReason, Prompt, Sample, VersionSpan


def _sample(prompt: int, reward: float, *, length: int = 2, finish: FinishReason = "stop") -> Sample:
    completion = Completion(
        token_ids=(1,) * length,
        log_probs=(-1.0,) * length,
        text="x" * length,
        finish_reason=finish,
        version_spans=(VersionSpan("0", 0, length),),
    )
    asked = Prompt(index=7, text=f"p{prompt}", token_ids=(1,), answer="1")
    return Sample(prompt=asked, completion=completion, group=prompt, reward=reward)


BATCH = [_sample(prompt, 0.5) for prompt in range(5) for _ in range(4)]
BATCH[7] = _sample(1, 1.0)
BATCH[10] = _sample(2, 0.0)
BATCH[13] = _sample(3, 0.5, length=9)
BATCH[17] = replace(_sample(4, 0.0), failure="timeout")
BATCH[15] = _sample(3, 0.5, length=8, finish="length")


def test_extremes_and_every_prompt_are_shown() -> None:
    shown = representative(BATCH, 8)
    assert len(shown) == 8
    assert {sample.group for sample, _ in shown} == {0, 1, 2, 3, 4}
    assert {BATCH.index(sample): notable for sample, notable in shown if notable} == {
        7: ("best reward",),
        10: ("worst reward",),
        13: ("longest",),
        15: ("cut at the length limit",),
        17: ("verifier failure",),
    }
    places = [next(i for i, each in enumerate(BATCH) if each is sample) for sample, _ in shown]
    assert places == sorted(places)


def test_the_number_is_a_bound() -> None:
    assert [len(representative(BATCH, count)) for count in (0, 1, 3, 1000)] == [0, 1, 3, len(BATCH)]
    assert [sample for sample, _ in representative(BATCH, 1000)] == BATCH
    assert representative([], 8) == []


def test_a_file_says_what_is_notable(tmp_path: Path) -> None:
    (tmp_path / "samples").mkdir()
    write_samples(tmp_path, representative(BATCH, 4), step=3, version=2)
    (path,) = (tmp_path / "samples").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["notable"] for line in lines] == [
        ["best reward"],
        ["worst reward"],
        ["longest"],
        ["cut at the length limit"],
    ]
    assert {line["prompt"] for line in lines} == {"p1", "p2", "p3"}
