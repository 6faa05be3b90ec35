"""Verifiers of numbers: which number of a response counts, and which numbers are equal."""

from __future__ import annotations

import time
from fractions import Fraction
from typing import Any

import pytest

from megacov.errors import ConfigError, DataError
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers.gsm8k import gsm8k
from megacov.rewards.verifiers.numbers import find_numbers, only_number
from megacov.rewards.verifiers.numeric import numeric

FOUND = {
    "$1,234.50": "1234.5",
    "-$5 and -$3": "-5 -3",
    "16-3=13": "16 3 13",
    "x=-3, y = - 3": "-3 3",
    "(2)-3": "2 3",
    "1.5e3 1.5E-3": "1500 0.0015",
    "1.5 x 10^3": "1500",
    r"1.5 \times 10^{-3} m": "0.0015",
    r"2 \cdot 10^6": "2000000",
    "3/4 or 6 / 8": "3/4 3/4",
    r"\frac{3}{4}, -\dfrac{ 1 }{ 8 }": "3/4 -1/8",
    "1 3/4": "7/4",
    "50% of 20kg": "50 20",
    "CO2 and x_1": "",
    "it is ...5": "5",
    ".5 and -.5": "1/2 -1/2",
    "v3.14.15": "",
    "12,34": "12 34",
    "1, 2,000, 3": "1 2000 3",
    r"1{,}000 and 1,\!000": "1000 1000",
    "\u22125 and \u0663": "-5",
    "5. 6.": "5 6",
    "10:30": "10 30",
}


@pytest.mark.parametrize("text", list(FOUND))
def test_numbers_of_a_text(text: str) -> None:
    assert find_numbers(text) == [Fraction(each) for each in FOUND[text].split()]


def test_a_number_beyond_all_bounds_is_none_and_costs_nothing() -> None:
    since = time.process_time()
    for text in ("1e99999", "9" * 100_000, "1/0", r"\frac{1}{0}", "2 x 10^99999"):
        assert find_numbers(f"5 {text}")[-1] is None
        assert gsm8k(text, "5") == numeric(text, "5") == 0.0
    find_numbers("1 " * 50_000 + "1," * 50_000 + "-" * 50_000 + r"\frac{" * 20_000)
    assert time.process_time() - since < 2.0


@pytest.mark.parametrize("text", ["72 eggs", "1 and 2", "", "x", "3-4", "72 72", "NaN", "inf", "#### 72"])
def test_what_is_no_number_alone(text: str) -> None:
    assert only_number(text) is None
    with pytest.raises(DataError, match="numeric needs a number"):
        numeric("72", text)


GSM8K = [
    ("16 - 3 - 4 = 9\n#### 18", "18", 1, 1),
    ("She makes $18 every day.\n#### $18.00", "18", 1, 1),
    ("#### 18 dollars in 7 days", "18", 1, 1),
    ("#### 17\nno, wait\n#### 18", "18", 1, 1),
    ("#### 18\nno, wait\n#### 17", "18", 0, 0),
    ("The answer is 18.", "18", 0, 1),
    (r"The answer is $\boxed{1,800}$.", "1800", 0, 1),
    ("18 in 7 days", "18", 0, 0),
    ("####", "18", 0, 0),
    ("It is 18\n#### eighteen", "18", 0, 1),
    ("#### 72%", "72", 1, 1),
    ("#### 0.5", "1/2", 1, 1),
    ("#### 5/2", "2", 0, 0),
    ("#### -3", "3", 0, 0),
    ("#### 18", "She sells 9 * 2 = $<<9*2=18>>18.\n#### 18", 1, 1),
    ("#### 180", "18", 0, 0),
    ("", "18", 0, 0),
    ("I do not know.", "0", 0, 0),
]


@pytest.mark.parametrize(("text", "answer", "strict", "flexible"), GSM8K)
def test_gsm8k(text: str, answer: str, strict: int, flexible: int) -> None:
    assert (gsm8k(text, answer, method="strict"), gsm8k(text, answer)) == (strict, flexible)


NUMERIC: list[tuple[str, str, dict[str, Any], int]] = [
    ("It is 3.", "3", {}, 1),
    ("It is 3.0000001", "3", {}, 1),
    ("It is 3.001", "3", {}, 0),
    ("It is 3.001", "3", {"absolute": 0.001}, 1),
    ("It is 3.0011", "3", {"absolute": 0.001}, 0),
    ("It is 101", "100", {"relative": 0.01}, 1),
    ("It is 99", "100", {"relative": 0.01}, 1),
    ("It is 101.1", "100", {"relative": 0.01}, 0),
    ("It is -99", "-100", {"relative": 0.01}, 1),
    ("1e-9", "0", {}, 0),
    ("1e-9", "0", {"absolute": 1e-8}, 1),
    ("6.02 x 10^{23}", "6.02e23", {}, 1),
    ("0.75", r"\frac{3}{4}", {}, 1),
    ("50%", "50", {}, 1),
    ("50%", "0.5", {}, 0),
    ("5, or perhaps 7", "7", {}, 1),
    ("5, or perhaps 7", "5", {}, 0),
    (r"\boxed{5}, since 5 < 7", "5", {}, 1),
    (r"\boxed{5, 7}", "7", {}, 0),
    (r"\boxed{}: 7", "7", {}, 0),
    (r"\boxed{7", "7", {}, 0),
    (r"\boxed{5} or \boxed{\frac{1}{2} \text{ kg}}", "0.5", {}, 1),
    ("none", "7", {}, 0),
]


@pytest.mark.parametrize(("text", "answer", "arguments", "reward"), NUMERIC)
def test_numeric(text: str, answer: str, arguments: dict[str, Any], reward: int) -> None:
    assert numeric(text, answer, **arguments) == reward


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("gsm8k", {"method": "loose"}, "rewards.arguments: method is 'loose'; set it to flexible or strict"),
        ("numeric", {"relative": -0.1}, "rewards.arguments: relative is -0.1; set it to a number from 0"),
        ("numeric", {"absolute": "1"}, "absolute is '1'"),
        ("numeric", {"absolute": True}, "absolute is True"),
        ("numeric", {"tolerance": 1}, "sets tolerance, and numeric takes absolute, relative"),
    ],
)
def test_arguments_that_are_refused(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_verifier(VerifierSettings(name, arguments))
