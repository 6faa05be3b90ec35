"""The law R = -a exp(H) + b between entropy and reward: fit, intervals, early prediction, and a verdict."""

from megacov.monitor.entropy_law.conditions import read_conditions
from megacov.monitor.entropy_law.law import EntropyLaw, Intervals, fit
from megacov.monitor.entropy_law.verdict import Reason, Verdict

__all__ = ["EntropyLaw", "Intervals", "Reason", "Verdict", "fit", "read_conditions"]
