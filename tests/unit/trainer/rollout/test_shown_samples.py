"""The few responses that people read show more than one prompt and the extremes of a step."""

from __future__ import annotations

from dataclasses import replace

from megacov.trainer.rollout.shown_samples import representative
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
    assert {each.sample.group for each in shown} == {0, 1, 2, 3, 4}
    assert {each.row: each.notable for each in shown if each.notable} == {
        7: ("best reward",),
        10: ("worst reward",),
        13: ("longest",),
        15: ("cut at the length limit",),
        17: ("verifier failure",),
    }
    assert all(BATCH[each.row] is each.sample for each in shown)
    assert [each.row for each in shown] == sorted(each.row for each in shown)


def test_the_number_is_a_bound() -> None:
    assert [len(representative(BATCH, count)) for count in (0, 1, 3, 1000)] == [0, 1, 3, len(BATCH)]
    assert [each.sample for each in representative(BATCH, 1000)] == BATCH
    assert representative([], 8) == []
