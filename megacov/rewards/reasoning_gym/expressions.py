"""Answers that must not reach the scorer of a task, because it would run them as Python or take them for right.

The scorers of eight tasks call `eval`, or sympy's `parse_expr`, which calls it, on the text of a response: without a
bound a response could run any program. The bounds below admit lists, sums and formulas, and nothing that calls another
function, reads an attribute, or computes a number of a million digits. A ninth scorer takes "nan" for any number.
"""

from __future__ import annotations

import ast
import math
import re
import warnings

_LONGEST = 2000
_LITERAL_TASKS = frozenset({"binary_matrix", "n_queens", "number_sorting", "spiral_matrix", "string_insertion"})
_FORMULA_TASKS = frozenset({"intermediate_integration", "polynomial_multiplication", "simple_integration"})
_LITERAL_NODES = (ast.Expression, ast.List, ast.Tuple, ast.Constant, ast.Name, ast.Load, ast.UnaryOp, ast.USub)

_SUM = re.compile(r"(?!.*(\*\*|//))[0-9+\-*/() \t]*", re.DOTALL)
_FUNCTIONS = frozenset("sqrt exp log ln sin cos tan sec csc cot asin acos atan sinh cosh tanh pi".split())  # noqa: SIM905
# Python would read 1e9 as one number.
_FORMULA = re.compile(r"(?:\d+\.\d+(?![A-Za-z\d])|\d+(?![A-Za-z\d])|[A-Za-z]+|\*\*|[+\-*/()]|[ \t])*")
# A power of a number, a name or a bracket, whose exponent is a number or a fraction of at most two digits.
_POWER = re.compile(
    r"(\)?)[ \t]*\*\*[ \t]*(?:(\d{1,2})(?![\d.])|\([ \t]*-?[ \t]*(\d{1,2})[ \t]*(?:/[ \t]*\d{1,2}[ \t]*)?\))"
)
_LARGEST_POWER = 100
"""Largest product of the exponents of brackets, which may contain each other."""


def may_be_scored(task: str, answer: str) -> bool:
    """Whether a text may be handed to the scorer of a task. The texts left out are wrong answers.

    Args:
        task: name of the task.
        answer: answer of a response, or the right answer of a row, without blanks around it.

    Returns:
        True for every task whose scorer runs nothing; otherwise whether the text is within the bounds.
    """
    if task in _LITERAL_TASKS:
        return len(answer) <= _LONGEST and _is_literal(answer)
    if task == "countdown":
        return len(answer) <= _LONGEST and _SUM.fullmatch(answer) is not None
    if task in _FORMULA_TASKS:
        return len(answer) <= _LONGEST and _is_formula(answer)
    if task == "complex_arithmetic":
        return "nan" not in "".join(answer.split()).lower()
    return True


def _is_literal(answer: str) -> bool:
    """Whether `eval` would fail before it runs anything, or return a name or nested lists of text and numbers."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(answer, mode="eval")
    except (SyntaxError, ValueError):
        return True  # eval raises the same before it runs anything
    except (MemoryError, RecursionError):
        return False  # nested too deeply for Python's parser
    return all(isinstance(node, _LITERAL_NODES) for node in ast.walk(tree))


def _is_formula(answer: str) -> bool:
    """Whether a text has just numbers, variables of one letter, known functions, + - * / and small powers."""
    if _FORMULA.fullmatch(answer) is None:
        return False
    if any(len(name) > 1 and name not in _FUNCTIONS for name in re.findall("[A-Za-z]+", answer)):
        return False
    powers = list(_POWER.finditer(answer))
    if len(powers) < answer.count("**"):
        return False
    # x**2**3 is x**8 to Python: an exponent must not be followed by another.
    if any(answer[power.end() :].lstrip().startswith("**") for power in powers):
        return False
    of_brackets = [int(power[2] or power[3]) for power in powers if power[1]]
    return math.prod(max(1, exponent) for exponent in of_brackets) <= _LARGEST_POWER
