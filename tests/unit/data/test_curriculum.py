"""Running accuracies: computed as written, never changed in place, and the same to the bit after a checkpoint."""

from __future__ import annotations

import json
import random

import pytest

from megacov.data import CurriculumSettings, PromptAccuracies
from megacov.errors import CheckpointError
from megacov.types import Completion, Prompt, Sample

SETTINGS = CurriculumSettings(low=0.25, high=0.75, decay=0.5, right_above=0.5, min_samples=4, revisit_every=3)
COMPLETION = Completion((1,), (-0.5,), "x", "stop", ())


def unknown(num_prompts: int = 4) -> PromptAccuracies:
    return PromptAccuracies.unknown(SETTINGS, num_prompts=num_prompts)


def group(index: int, *rewards: float | str, number: int = 0) -> list[Sample]:
    """A judged group; a text is the kind of a verifier's failure."""
    prompt = Prompt(index, "p", (1,), "a")
    failures = [reward if isinstance(reward, str) else None for reward in rewards]
    values = [0.0 if isinstance(reward, str) else reward for reward in rewards]
    return [Sample(prompt, COMPLETION, number, value, failure) for value, failure in zip(values, failures, strict=True)]


def test_the_mean_decays_with_each_group():
    first = unknown().after([(1, True)], group(1, 1.0, 0.0, 0.6, 0.5))
    assert (first.mean[1], first.num_samples[1]) == (0.5, 4)
    second = first.after([], group(1, 1.0, 1.0))
    assert (second.mean[1], second.num_samples[1]) == (0.75, 6)
    # Two groups of one prompt in a batch count one after the other, and those that filtering dropped too.
    third = second.after([], [*group(1, 0.0, 0.0), *group(1, 1.0, 1.0, number=1)])
    assert (third.mean[1], third.num_samples[1]) == (0.6875, 10)
    assert (first.mean[1], first.num_samples[1]) == (0.5, 4), "an earlier state is still what it was"
    assert third.num_samples.tolist() == [0, 10, 0, 0]


def test_responses_without_a_verdict_say_nothing():
    one = unknown().after([], group(2, "timeout", 1.0, "died", 0.0, 1.0, 1.0))
    assert (one.mean[2], one.num_samples[2]) == (0.75, 4)
    none = one.after([], group(2, "timeout", "timeout"))
    assert (none.mean[2], none.num_samples[2]) == (0.75, 4)


def test_groups_of_prompts_that_the_data_no_longer_has_are_left_out():
    assert unknown().after([], group(4, 1.0, 1.0)).num_samples.tolist() == [0] * 4


def test_a_prompt_outside_the_band_is_passed_over_until_it_is_due_again():
    shares = {0: (1, 0, 0, 0), 1: (0, 0, 0, 0), 2: (1, 1, 1, 0), 3: (1, 1, 1, 1)}
    judged = [sample for index, rewards in shares.items() for sample in group(index, *rewards, number=index)]
    accuracies = unknown().after([], judged)
    assert [accuracies.passes_over(index, num_passed=0) for index in range(4)] == [False, True, False, True]
    assert [accuracies.passes_over(1, num_passed=num_passed) for num_passed in range(4)] == [True, True, False, False]
    assert accuracies.bands() == {"below_band": 0.25, "above_band": 0.25, "in_band": 0.5, "unknown": 0.0}
    assert accuracies.mean_of([0, 2]) == 0.5


def test_too_few_responses_decide_nothing():
    accuracies = unknown().after([], group(0, 0.0, 0.0, 0.0))
    assert not accuracies.passes_over(0, num_passed=0)
    assert accuracies.bands() == {"below_band": 0.0, "above_band": 0.0, "in_band": 0.0, "unknown": 1.0}
    assert accuracies.mean_of([1, 2]) is None and accuracies.mean_of([]) is None and accuracies.mean_of([0, 1]) == 0.0


def same(first: PromptAccuracies, second: PromptAccuracies) -> bool:
    names = ("mean", "num_samples", "num_passed")
    return all(getattr(first, name).tobytes() == getattr(second, name).tobytes() for name in names)


def test_what_is_written_is_read_to_the_bit():
    chance, accuracies = random.Random(5), unknown(50)
    for _ in range(40):
        turns = [(chance.randrange(50), chance.random() < 0.3) for _ in range(20)]
        judged = [
            sample
            for number in range(6)
            for sample in group(chance.randrange(25), *(chance.random() for _ in range(7)), number=number)
        ]
        accuracies = accuracies.after(turns, judged)
    text = accuracies.dump()
    assert same(unknown(50).load(text), accuracies) and not same(accuracies, unknown(50))
    assert same(unknown(3).load(unknown(3).dump()), unknown(3))
    assert len(text) < 60 * 51, "a line of some 40 bytes for each prompt"
    other = unknown(51)
    assert other.load(text) is other, "accuracies of other data are no accuracies"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"num_prompts": "4"}\n[0, 0.5, 1, 0]',
        *(
            f'{{"num_prompts": 4}}\n{json.dumps(row)}'
            for row in (
                [4, 0.5, 1, 0],
                [0, 1.5, 1, 0],
                [0, 1, 1, 0],
                [0, 0.5, -1, 0],
                [0, 0.5, 1],
                [True, 0.5, 1, 0],
                3,
            )
        ),
        '{"num_prompts": 4}\n[0, NaN, 1, 0]',
        '{"num_prompts": 4}\n[0, 0.5, 1, 65536]',
    ],
)
def test_another_form_is_refused(text: str):
    with pytest.raises(CheckpointError, match="accuracies of a checkpoint are malformed"):
        unknown().load(text)
