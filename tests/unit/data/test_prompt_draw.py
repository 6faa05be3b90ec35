"""Drawing prompts: the order of the data, less what a curriculum passes over; nothing is lost for ever."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np

from megacov.data import CurriculumSettings, PromptAccuracies, PromptDraw, PromptStream
from megacov.types import Prompt

PROMPTS = [Prompt(index, f"prompt {index}", (index,), str(index)) for index in range(10)]
SETTINGS = CurriculumSettings(low=0.2, high=0.8, decay=0.5, right_above=0.5, min_samples=1, revisit_every=3)


def accuracies(*outside: int, num_passed: int = 0) -> PromptAccuracies:
    """Accuracies of 0 for some prompts, which were passed over before, and of 0.5 for all others."""
    unknown = PromptAccuracies.unknown(SETTINGS, num_prompts=len(PROMPTS))
    means = np.array([0.0 if index in outside else 0.5 for index in range(len(PROMPTS))])
    passed = np.array([num_passed if index in outside else 0 for index in range(len(PROMPTS))], dtype=np.uint16)
    return replace(unknown, mean=means, num_samples=np.full_like(unknown.num_samples, 8), num_passed=passed)


def draw(known: PromptAccuracies | None, *, position: int = 0) -> PromptDraw:
    return PromptDraw(PromptStream(PROMPTS, seed=0, shuffle=False, position=position), known)


def taken(each: PromptDraw, number: int) -> list[int]:
    return [next(each).index for _ in range(number)]


def test_without_a_curriculum_the_data_is_drawn_as_it_is():
    stream, each = PromptStream(PROMPTS, seed=3, position=7), PromptDraw(PromptStream(PROMPTS, seed=3, position=7))
    assert taken(each, 15) == [prompt.index for prompt in stream.take(15)]
    for number in (0, 4, 15):
        used = each.first(number)
        assert (used.position, used.turns) == (7 + number, ())


def test_what_was_drawn_and_not_used_comes_again_with_what_was_passed_over_after_it():
    each = draw(accuracies(1, 3, 4))
    assert taken(each, 4) == [0, 2, 5, 6]
    first, second = each.first(1), each.first(3)
    assert (first.position, first.turns) == (1, ((0, True),))
    assert second.position == 6
    assert second.turns == ((0, True), (1, False), (2, True), (3, False), (4, False), (5, True))
    assert taken(draw(accuracies(1, 3, 4), position=first.position), 3) == [2, 5, 6]


def test_prompts_outside_the_band_are_drawn_at_one_turn_in_three():
    known, position = accuracies(1, 3, 4), 0
    drawn: list[Counter[int]] = []
    for _ in range(6):  # epochs, each in batches of one prompt, whose turns count from batch to batch
        drawn.append(Counter())
        while position < 10 * len(drawn):
            each = draw(known, position=position)
            prompt = next(each)
            used = each.first(1)
            drawn[-1][prompt.index] += 1
            position, known = used.position, known.after(used.turns, [])
    seen = [sorted(counts.elements()) for counts in drawn]
    others = [0, 2, 5, 6, 7, 8, 9]
    assert seen == [others, others, list(range(10))] * 2
    # The same in one batch that goes through all epochs.
    assert Counter(taken(draw(accuracies(1, 3, 4)), sum(map(len, seen)))) == sum(drawn, Counter())


def test_where_nothing_is_in_the_band_the_search_ends_after_each_prompt_once():
    each = draw(accuracies(*range(10)))
    assert taken(each, 1) == [0], "all ten are passed over, and the first comes again"
    used = each.first(1)
    assert used.position == 11
    assert used.turns == (*((index, False) for index in range(10)), (0, True))
    # The second prompt has been passed over once, as has the rest; all are due at their third turn.
    assert taken(each, 10) == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]


def test_metrics_are_of_what_the_draw_went_by():
    known = accuracies(1, 3, 4)
    each = draw(known)
    taken(each, 4)
    assert each.first(3).metrics(known) == {
        "curriculum/skipped": 3,
        "curriculum/accuracy": 0.5,
        "curriculum/below_band": 0.3,
        "curriculum/in_band": 0.7,
        "curriculum/above_band": 0.0,
        "curriculum/unknown": 0.0,
    }
    unknown = PromptAccuracies.unknown(SETTINGS, num_prompts=10)
    assert "curriculum/accuracy" not in draw(unknown).first(0).metrics(unknown)
