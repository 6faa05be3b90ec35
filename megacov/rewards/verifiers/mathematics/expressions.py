"""Expressions, which math-verify's parser reads; their values decide whether two are equal.

Everything is bounded before the library is asked: the length and the nesting of an expression (its parser takes
seconds for nested parentheses and bars), and the size of the numbers in it (no tower of powers may be multiplied out).
"""

from __future__ import annotations

import contextlib
import re
import signal
import threading
import zlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from megacov.rewards.verifiers.mathematics.latex import DEGREE, PERCENT
from megacov.rewards.verifiers.mathematics.sizes import is_small

MAX_LENGTH = 300
"""Longest expression that the library reads. [characters]"""
_MAX_PARENTHESES, _MAX_BRACES, _MAX_BARS = 6, 12, 8
_DEADLINE_S = 2.0  # of the library, for what its bounds let through
_DIGITS, _FEW_DIGITS = 30, 4  # of all values, and before the point
_RELATIVE, _ABSOLUTE = 1e-24, 1e-100  # zero comes out as about 1e-120
_LARGE_DIGITS = re.compile(r"\d{5}")
_EVALUATED_AT_ONCE = re.compile(r"\\binom|!|\\gcd|\\lcm|\\det")
# Written out, since the parser reads 5(4) as the mixed number 5 + 4. Not where a function follows, as in \log_2(8).
_PRODUCT = re.compile(r"((?<![_^\d.])\d+(?:\.\d+)?|\))\s*(?=\()")
_DEGREES = re.compile(rf"(\d+(?:\.\d+)?){DEGREE}")
_DECIMALS = re.compile(r"(?<![\d.])(\d*)\.(\d+)(?![\d.])")


class _TooLong(BaseException):
    """The library has taken too long. No Exception, since the library catches those."""


@contextlib.contextmanager
def _deadline() -> Iterator[None]:
    """Interrupt what runs inside after two seconds, where signals can do so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, _DEADLINE_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@lru_cache(maxsize=4096)
def parsed(latex: str) -> Any:
    """Have the library read an expression; the last 4,096 are remembered.

    Args:
        latex: a cleaned expression.

    Returns:
        A SymPy object that nothing has evaluated yet; None if the library cannot read it, or it is out of bounds.
    """
    if not _is_bounded(latex):
        return None
    from latex2sympy2_extended import latex2sympy  # a third of a second, which most answers do not need
    from latex2sympy2_extended.latex2sympy2 import ConversionConfig
    from sympy import Basic, I, MatrixBase, Symbol

    text = _PRODUCT.sub(r"\1\\cdot ", latex)
    text = _DEGREES.sub(r"(\\frac{\\pi}{180}\\cdot \1)", text).replace(DEGREE, r"\cdot\frac{\pi}{180}")
    text = _DECIMALS.sub(_as_fraction, text.replace(PERCENT, r"\cdot\frac{1}{100}"))
    try:
        with _deadline():
            expression = latex2sympy(
                text,
                is_real=True,
                convert_degrees=False,
                normalization_config=None,
                conversion_config=ConversionConfig(lowercase_symbols=False),
            )
            if not isinstance(expression, Basic | MatrixBase) or not is_small(expression):
                return None
            return expression.xreplace({Symbol("i", real=True): I})
    except _TooLong:
        return None
    except Exception:  # noqa: BLE001 - the parser raises Exception itself, and SymPy's constructors raise anything
        return None


def _as_fraction(decimal: re.Match[str]) -> str:
    """A decimal as an exact fraction, since the parser makes a rounded number of it."""
    whole, digits = decimal.groups()
    return rf"(\frac{{{int(whole + digits)}}}{{1{'0' * len(digits)}}})" if len(digits) <= 30 else decimal[0]


def _is_bounded(latex: str) -> bool:
    if not latex or len(latex) > MAX_LENGTH or latex.count("|") > _MAX_BARS:
        return False
    if _EVALUATED_AT_ONCE.search(latex) and _LARGE_DIGITS.search(latex):
        return False
    parentheses = braces = deepest = 0
    for sign in latex:
        parentheses += (sign in "([") - (sign in ")]")
        braces += (sign == "{") - (sign == "}")
        if parentheses < 0 or braces < 0 or braces > _MAX_BRACES:
            return False
        deepest = max(deepest, parentheses)
    return parentheses == braces == 0 and deepest <= _MAX_PARENTHESES and "{{{" not in latex


def number(latex: str) -> complex | None:
    """Value of an expression without variables; None if it has some, or cannot be read."""
    expression = parsed(latex)
    if expression is None or getattr(expression, "free_symbols", True):
        return None
    value = _value(expression, {})
    return None if value is None else complex(value)


def symbols(latex: str) -> frozenset[str]:
    """Names of the variables of an expression."""
    return frozenset(str(each) for each in getattr(parsed(latex), "free_symbols", ()))


def same_expression(gold: str, prediction: str, *, tolerance: float = 0.0) -> bool:
    """Whether two expressions are equal wherever they are compared.

    Both are evaluated to 30 digits, and large values to as many more as stand before the point: at one point if they
    have no variables, or else at three points that the names of the variables determine, one of them with negative
    values. Where a value is no number, as for functions without a definition, math-verify's `verify` decides.

    Args:
        gold: the right expression.
        prediction: the response's expression.
        tolerance: relative difference up to which values are equal.

    Returns:
        Whether they are equal.
    """
    first, second = parsed(gold), parsed(prediction)
    if first is None or second is None:
        return False
    if first == second:
        return True
    values = _values_at_points(first, second)
    if values is None:
        return _verified(first, second)
    return bool(values) and all(_close(a, b, tolerance) for a, b in values)


def same_zeros(gold: tuple[str, str], prediction: tuple[str, str], *, keeps_sign: bool = False) -> bool:
    """Whether two equations or inequalities have the same solutions because their sides' differences are proportional.

    Args:
        gold: both sides.
        prediction: both sides.
        keeps_sign: whether the factor must be positive, as for inequalities.

    Returns:
        Whether they are; False also if they are equivalent in another way.
    """
    sides = [parsed(side) for side in (*gold, *prediction)]
    if any(side is None for side in sides):
        return False
    differences = [_values_at_points(sides[0], sides[1]), _values_at_points(sides[2], sides[3])]
    names = frozenset().union(*(side.free_symbols for side in sides))
    if not names or None in differences or (sides[0] - sides[1]).free_symbols != (sides[2] - sides[3]).free_symbols:
        return False
    values = [_values_at_points(left, right, names) for left, right in (sides[:2], sides[2:])]
    if values[0] is None or values[1] is None or len(values[0]) != len(values[1]) or len(values[0]) < 2:
        return False
    ratios = []
    for (a, b), (c, d) in zip(*values, strict=True):
        if a == b or c == d:
            return False
        ratios.append((a - b) / (c - d))
    return all(_close(ratio, ratios[0], 0.0) for ratio in ratios) and (not keeps_sign or complex(ratios[0]).real > 0)


def _values_at_points(first: Any, second: Any, names: frozenset[Any] | None = None) -> list[tuple[Any, Any]] | None:
    """Both values at each point where both are finite; None where one is not a number."""
    names = frozenset(first.free_symbols | second.free_symbols) if names is None else names
    values = []
    for index in range(3 if names else 1):
        point = {name: _coordinate(str(name), index) for name in names}
        a, b = _value(first, point), _value(second, point)
        if a is None or b is None:
            return None
        values.append((a, b))
    return values


def _coordinate(name: str, index: int) -> Any:
    from sympy import Rational

    size = Rational(zlib.crc32(f"{name}{index}".encode()) % 9973 + 3001, 4999)
    return -size if index == 2 else size


def _value(expression: Any, point: dict[Any, Any]) -> Any:
    """Value to 30 digits, and to those before the point beyond them; None if it is no number."""
    try:
        with _deadline():
            value = _evaluated(expression, point, _DIGITS)
            if value is None:
                expression = expression.doit()  # remainders, for one
                value = _evaluated(expression, point, _DIGITS)
            num_whole = 0 if value is None else _num_whole_digits(value)
            return value if num_whole < _FEW_DIGITS else _evaluated(expression, point, _DIGITS + num_whole)
    except _TooLong:
        return None
    except Exception:  # noqa: BLE001 - SymPy raises many kinds on what it cannot evaluate
        return None


def _evaluated(expression: Any, point: dict[Any, Any], num_digits: int) -> Any:
    value = expression.evalf(num_digits, subs=point, maxn=4 * num_digits)
    return value if all(part.is_Number for part in value.as_real_imag()) else None


def _num_whole_digits(value: Any) -> int:
    """Digits before the point, one too many at most."""
    from mpmath import mag

    return max([0, *(int(mag(part) * 0.302) + 1 for part in value.as_real_imag() if part.is_finite and part)])


def _close(a: Any, b: Any, tolerance: float) -> bool:
    if a == b:
        return True
    if not (a.is_finite and b.is_finite):
        return False
    scale = max(abs(a).evalf(), abs(b).evalf())
    # Values of at least 1 differ if their first digits behind the point do, however many stand before it.
    return bool(abs(a - b).evalf() <= max(tolerance * scale, _RELATIVE * min(scale, 1.0)) + _ABSOLUTE)


def _verified(first: Any, second: Any) -> bool:
    from math_verify import verify

    in_main_thread = threading.current_thread() is threading.main_thread()
    return in_main_thread and bool(verify(first, second, timeout_seconds=int(_DEADLINE_S)))
