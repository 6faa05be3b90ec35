"""The verifier of code: right and wrong programs in every form of tests, and programs that try to pass without work."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from megacov.config import load_config
from megacov.errors import ConfigError, DataError
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings
from megacov.rewards.verifiers.code import check_answer, check_arguments, code, find_program, prepare
from megacov.rewards.verifiers.code_tests import outputs_agree, parse_tests, values_agree
from tests.support.sandboxes import ROOT, needs_sandbox
from tests.support.verifier_pool import opened

PROGRAM = json.dumps({"inputs": ["1 2\n", "3 4\n"], "outputs": ["3\n", "7\n"]})
FUNCTION = json.dumps({"fn_name": "add", "inputs": [[1, 2], [[1], [2]]], "outputs": [3, [[1, 2]]]})
ASSERTS = json.dumps(["assert add(1, 2) == 3", "assert add((1,), (2,)) == (1, 2)"])
CHECK = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate('a', b='b') == 'ab'\n"
ROW = {"entry_point": "add"}

ADD = "def add(a, b):\n    return a + b\n"
SUM = "print(sum(map(int, input().split())))"
# A program of each form of tests that is right, and one that is right for the first test only.
FORMS = {
    "program": (PROGRAM, SUM, "print(3)"),
    "function": (FUNCTION, ADD, "def add(a, b): return 3"),
    "method": (
        FUNCTION,
        f"class Solution:\n    add = staticmethod(lambda a, b: a + b)\n    {'pass'}",
        "def add(a, b): 1 / 0",
    ),
    "statements": (ASSERTS, ADD, "def add(a, b): return 3"),
    "check": (CHECK, ADD, "def add(a, b): return 3"),
}
CHEATS = {
    "exits": "import os\nos._exit(0)",
    "exits in the function": "import os\ndef add(a, b): os._exit(0)",
    "raises SystemExit": "def add(a, b): raise SystemExit(0)\nraise SystemExit",
    "equals anything": "class Any:\n    def __eq__(self, other): return True\ndef add(a, b): return Any()",
    "equal text": "class T(str):\n    def __eq__(self, other): return True\ndef add(a, b): return T()",
    "no assertions": "import builtins\nbuiltins.AssertionError = StopIteration\ndef add(a, b): return None",
    "prints the verdict": "print('passed')\ndef add(a, b): return None",
    "writes everywhere": (
        "import os\nfor n in range(3, 32):\n    try:\n        os.write(n, b'passed')\n    except OSError: pass\n"
        "def add(a, b): return None"
    ),
    "patches json": "import json\njson.dumps = lambda *a, **k: '{}'\njson.dump = print\ndef add(a, b): return 0",
    "does not end": "import time\ntime.sleep(60)",
    "is no Python": "def add(a, b:",
    "is nothing": "",
}


@pytest.mark.parametrize("form", sorted(FORMS))
def test_right_and_wrong(form: str) -> None:
    needs_sandbox()
    tests, right, wrong = FORMS[form]
    assert code(f"So:\n```python\n{right}\n```\nDone.", tests, row=ROW) == 1.0
    assert code(right, tests, row=ROW, score="share") == 1.0
    assert code(wrong, tests, row=ROW) == 0.0


def test_a_share_of_tests() -> None:
    needs_sandbox()
    for form in ("program", "function", "statements"):
        assert code(FORMS[form][2], FORMS[form][0], score="share") == 0.5
        assert code(FORMS[form][2], FORMS[form][0], max_tests=1) == 1.0


@pytest.mark.parametrize("tests", [PROGRAM, FUNCTION, ASSERTS, CHECK], ids=["program", "function", "asserts", "check"])
def test_no_way_around_the_work(tests: str) -> None:
    needs_sandbox()
    got = {name: code(source, tests, row=ROW, wall_s=0.5 if "end" in name else 10.0) for name, source in CHEATS.items()}
    assert got == dict.fromkeys(CHEATS, 0.0)


def test_the_response_never_holds_the_tests() -> None:
    needs_sandbox()
    peek = """
import gc, sys
def peek():
    frame, found = sys._getframe(), []
    while frame:
        found += [str(value) for value in frame.f_locals.values()]
        frame = frame.f_back
    return sum("".join(["4821", "7305"]) in text for text in [*found, *map(str, gc.get_objects())])
"""
    assert code(peek, "wanted = '48217305'\nassert peek() == 0") == 1.0
    assert code(f"kept = ['4821' + '7305']\n{peek}", "assert peek() == 0") == 0.0, "it would be found"


def test_values_of_tests_that_are_no_lists() -> None:
    needs_sandbox()
    same = "def same(x): return x"
    values = ["{1, 2}", "(1, [2.5, None])", "{(1, 2): b'x'}", "10**5000", "float('inf')", "1j", "range(3)", "'\\ud800'"]
    assert code(same, json.dumps([f"assert same({value}) == {value}" for value in values]), score="share") == 1.0
    raising = "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass"
    assert code("def fail(): return {}['x']", raising) == 1.0
    assert code("def fail(): return 1", raising) == 0.0


def test_through_the_pool(tmp_path: Path) -> None:
    needs_sandbox()

    async def run(pool: Any) -> list[Any]:
        try:
            assert [place for place, _ in await pool.check_answers([PROGRAM, "no tests"])] == [1]
            calls = [
                pool.judge({"text": text, "answer": PROGRAM, "row": {}}) for text in (SUM, "print(1)", "\ud800\x00")
            ]
            return [judged.outcome for judged in await asyncio.gather(*calls)]
        finally:
            await pool.aclose()

    with opened([VerifierSettings("code", {"time_s": 5.0})], tmp_path) as pool:
        outcomes = asyncio.run(run(pool))
    assert [(outcome.reward, outcome.failure) for outcome in outcomes] == [(1.0, None), (0.0, None), (0.0, None)]


def test_little_memory_is_enough_for_a_small_program() -> None:
    needs_sandbox()
    prepare(memory_mib=64)
    assert code(SUM, PROGRAM, memory_mib=64) == 1.0


def test_modules_of_a_folder(tmp_path: Path) -> None:
    needs_sandbox()
    tmp_path.chmod(0o755)  # of root's files, programs see those that everybody may read
    (tmp_path / "added.py").write_text("value = 7\n")
    assert (
        code("import added\nprint(added.value)", '{"inputs": [""], "outputs": ["7"]}', packages=[str(tmp_path)]) == 1.0
    )


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("x = 1", "x = 1"),
        ("a\n```python\nx = 1\n```\nb\n```py\nx = 2\n```\nc", "x = 2\n"),
        ("```python\nx = 1\n```\n```\nsome output\n```", "x = 1\n"),
        ("```Python\nx = '``'\n", "x = '``'\n"),
        ("1. so\n   ```python\n   x = 1\n   ```", "   x = 1\n"),
    ],
)
def test_the_program_of_a_response(text: str, program: str) -> None:
    assert find_program(text) == program


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        ("42", "The tests must be"),
        ("", "assert nothing"),
        ("x = 1", "assert nothing"),
        ("no tests", "neither JSON nor statements"),
        ('{"inputs": ["1"], "outputs": []}', "1 inputs and 0 outputs"),
        ('{"inputs": [], "outputs": []}', "empty list"),
        ('{"fn_name": "f", "inputs": ["[1"], "outputs": ["1"]}', "that are no JSON"),
        ('[{"input": "1", "output": "1"}, {"input": "1"}]', 'needs "input" and "output"'),
    ],
)
def test_answers_that_are_no_tests(answer: str, sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        check_answer(answer)


def test_forms_of_tests() -> None:
    pairs = [{"input": "[1]\n2", "output": "3", "testtype": "functional"}]
    assert parse_tests(pairs, function="f") == parse_tests({"fn_name": "f", "inputs": [[[1], 2]], "outputs": [3]})
    assert parse_tests([{"input": 1, "output": [2, 3]}]) == parse_tests({"inputs": ["1"], "outputs": ["2\n3"]})
    with pytest.raises(DataError, match="set the argument function"):
        parse_tests(CHECK)
    assert parse_tests(CHECK + "check(add)") != parse_tests(CHECK, function="add")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"score": "some"}, "score is 'some'"),
        ({"time_s": 0}, "time_s is 0"),
        ({"time_s": float("inf")}, "time_s is inf"),
        ({"tests_field": 3}, "the name of a field"),
        ({"memory_mib": 1.5}, "memory_mib is 1.5"),
        ({"processes": 41}, "40 or less"),
        ({"packages": "numpy"}, "a list of folders"),
    ],
)
def test_arguments_that_cannot_be_used(arguments: dict[str, Any], sentence: str) -> None:
    check_arguments(score="share", time_s=1.0, memory_mib=64, processes=40, packages=["a"], max_tests=None)
    with pytest.raises(ConfigError, match=sentence):
        check_arguments(**arguments)


@pytest.mark.parametrize(
    ("actual", "wanted", "agrees"),
    [
        ("1 2\n", "1 2", True),
        ("1  \n 2\n\n", "1\n2", True),
        ("1\n\n2", "1\n2", False),
        ("1  2", "1 2", True),
        ("0.33333333", "0.3333333", True),
        ("0.334", "0.333", False),
        ("10000001", "10000000", False),
        ("3.0", "3", False),
        ("nan", "1.0", False),
        ("Yes", "yes", False),
        ("", "0", False),
    ],
)
def test_outputs(actual: str, wanted: str, agrees: bool) -> None:
    assert outputs_agree(actual, wanted, tolerance=1e-6) is agrees


@pytest.mark.parametrize(
    ("actual", "wanted", "agrees"),
    [
        (3, 3, True),
        (3, [3], True),
        ((1, (2,)), [1, [2]], True),
        ({1: 2}, {"1": 2}, True),
        (1, True, False),
        (True, 1, False),
        (0.1 + 0.2, 0.3, True),
        (10**400, 1.0, False),
        (10_000_001, 10_000_000, False),
        ("1", 1, False),
        ([1], [1, 2], False),
        (None, None, True),
    ],
)
def test_values(actual: Any, wanted: Any, agrees: bool) -> None:
    assert values_agree(actual, wanted, tolerance=1e-6) is agrees


def test_the_task_of_the_repository(tmp_path: Path) -> None:
    both = tmp_path / "both.yaml"
    configs = ROOT / "yaml_configs"
    both.write_text(f"extends: [{configs}/runs/qwen2.5_7b_kl_cov_1n.yaml, {configs}/tasks/code.yaml]")
    config = load_config(both)
    assert (config.rewards.verifier, config.rewards.allow_code) == ("code", True)
    load_verifier(VerifierSettings(config.rewards.verifier, config.rewards.arguments))
    assert config.data.instruction is not None and "```python" in config.data.instruction
