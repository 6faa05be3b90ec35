"""The sum-pairs verifier accepts correct pairs, in one spelling only."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.errors import DataError
from megacov.rewards.verifiers.sum_pairs import sum_pairs


@given(st.integers(0, 10**30), st.integers(0, 10**30))
def test_every_pair_that_adds_up_is_right(first: int, second: int) -> None:
    assert sum_pairs(f"{first}+{second}", str(first + second)) == 1.0


@given(st.integers(0, 999), st.integers(0, 999), st.integers(0, 1998))
def test_a_pair_is_right_only_if_it_adds_up(first: int, second: int, target: int) -> None:
    assert sum_pairs(f"{first}+{second}", str(target)) == float(first + second == target)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "137",
        "+137",
        "137+",
        "+",
        "45+",
        "45+92+0",
        "45++92",
        "045+92",
        "45+092",
        "00+137",
        " 45+92",
        "45+92 ",
        "45+92\n",
        "45 + 92",
        "+45+92",
        "-5+142",
        "45.0+92",
        "4_5+92",
        "45+92=137",
        "137=45+92",
        "\uff14\uff15+92",  # full-width digits, which int() would accept
        "\u0664\u0665+92",  # Arabic-Indic digits
        "9" * 10_000 + "+1",  # longer than Python's int() accepts
    ],
)
def test_any_other_spelling_is_wrong(text: str) -> None:
    assert sum_pairs(text, "137") == 0.0


@pytest.mark.parametrize("answer", ["", "abc", "-3", "1.5", " 137", "137\n"])
def test_an_answer_that_is_no_number_is_a_data_error(answer: str) -> None:
    with pytest.raises(DataError, match="decimal digits"):
        sum_pairs("45+92", answer)
