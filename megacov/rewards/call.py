"""Calls a verifier, and turns whatever it returns or raises into a reward or a kind of failure."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from megacov.rewards.signature import Wanted

_LARGEST_REWARD = 3.4e38  # of float32, in which rewards travel
_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a call.

    reward: 0 for a failure.
    failure: a key of megacov.types.VERIFIER_FAILURES, or None.
    reason: words about the failure that follow "the verifier".
    """

    reward: float
    failure: str | None = None
    reason: str = ""


class Caller:
    """Calls one verifier, again and again, on the thread that calls `call`. Async functions share one event loop."""

    def __init__(self, verifier: Callable[..., Any], wanted: Wanted, arguments: Mapping[str, Any]) -> None:
        """Call nothing yet."""
        self._verifier, self._wanted, self._arguments = verifier, wanted, dict(arguments)
        self._runner: Any = None

    def call(self, values: Mapping[str, Any]) -> Outcome:
        """Judge one response. Raises nothing, whatever the verifier does.

        Args:
            values: response text, answer, and whatever else the verifier asks for, by name.

        Returns:
            A reward, or a failure of any kind except "timeout" and "died".
        """
        positional, keywords = self._wanted.bind(values)
        try:
            result = self._verifier(*positional, **keywords, **self._arguments)
            if inspect.isawaitable(result):
                result = self._wait(result)
            return classify(result)
        except BaseException as error:  # noqa: BLE001 - a verifier may raise SystemExit, CancelledError or anything else
            if not isinstance(error, Exception):
                self._runner = None  # its event loop was left in an unknown state
            return Outcome(0.0, "raised", f"raised {described(error)}")

    def _wait(self, result: Any) -> Any:
        import asyncio  # as large as the rest of a worker, and few verifiers need it

        async def wait() -> Any:
            return await result

        if self._runner is None:
            self._runner = asyncio.Runner()
        return self._runner.run(wait())


def classify(result: Any) -> Outcome:
    """The outcome of a call that returned something."""
    # Types say whether a value is a number: NumPy's and torch's scalars, Decimal and Fraction are, text is not.
    if not hasattr(type(result), "__float__") and not hasattr(type(result), "__index__"):
        return Outcome(0.0, "not_a_number", f"returned {_shortened(_repr(result))}, which is not a number")
    try:
        reward = float(result)
    except OverflowError:  # an integer that float64 cannot hold, and that may be too long to print
        return Outcome(0.0, "not_finite", "returned a number too large for float32 (a reward must be a finite number)")
    if not math.isfinite(reward) or abs(reward) > _LARGEST_REWARD:
        return Outcome(0.0, "not_finite", f"returned {reward} (a reward must be a finite number that float32 can hold)")
    return Outcome(reward)


def described(error: BaseException) -> str:
    """An exception of a user's code in one line."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001 - an exception of a user's own may fail to print
        text = ""
    return _shortened(f"{type(error).__name__}: {text}" if text else type(error).__name__)


def _repr(value: object) -> str:
    try:
        return repr(value)
    except BaseException:  # noqa: BLE001 - as above
        return f"a {type(value).__name__}"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 3] + "..."
