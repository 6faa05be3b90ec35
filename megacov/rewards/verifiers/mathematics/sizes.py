"""How large the numbers of an expression become if it is evaluated, from its tree alone."""

from __future__ import annotations

from typing import Any

_MAX_BITS = 50_000.0
_MAX_FACTORIAL = 3_000.0
_MAX_NODES = 400
_MAX_POWER_OF_SUM = 60.0  # of a sum with variables, which a library may multiply out


def is_small(expression: Any) -> bool:
    """Whether an expression can be evaluated in little time and memory.

    Args:
        expression: a SymPy object that has not been evaluated.

    Returns:
        False for numbers of more than 50,000 bits in it, high powers of sums, more than 400 parts, and for sums,
        products, integrals, limits and derivatives that are not worked out.
    """
    try:
        return _log2(expression, [0]) <= _MAX_BITS
    except (OverflowError, RecursionError):
        return False


def _log2(node: Any, seen: list[int]) -> float:
    """Upper bound of log2 of the magnitude of a number in the tree; infinite if it is out of bounds."""
    import sympy

    seen[0] += 1
    if seen[0] > _MAX_NODES or isinstance(
        node, sympy.Sum | sympy.Product | sympy.Integral | sympy.Limit | sympy.Derivative
    ):
        return float("inf")
    if isinstance(node, sympy.Rational):
        return float(max(abs(node.p).bit_length(), node.q.bit_length()))
    args = list(node) if isinstance(node, sympy.MatrixBase) else list(node.args)
    if not args:
        return 2.0  # a variable, pi, e
    sizes = [_log2(each, seen) for each in args]
    if isinstance(node, sympy.Pow | sympy.exp):
        base, exponent = (sizes[0], sizes[1]) if isinstance(node, sympy.Pow) else (2.0, sizes[0])
        if exponent > 40:
            return float("inf")
        power = 2.0**exponent
        if isinstance(node, sympy.Pow) and node.exp.is_Rational:
            power = abs(float(node.exp))
        is_sum = isinstance(node, sympy.Pow) and isinstance(node.base, sympy.Add | sympy.Mul) and node.base.free_symbols
        return float("inf") if is_sum and power > _MAX_POWER_OF_SUM else max(base * power, exponent)
    if isinstance(
        node, sympy.factorial | sympy.binomial | sympy.gamma | sympy.FallingFactorial | sympy.RisingFactorial
    ):
        largest = 2.0 ** max(sizes) if max(sizes) < 40 else float("inf")
        return largest * max(sizes) if largest <= 2 * _MAX_FACTORIAL else float("inf")
    return sum(sizes) if isinstance(node, sympy.Mul) else max(sizes) + len(sizes)
