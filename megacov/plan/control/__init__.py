"""Laws of control: how a setting of the algorithm follows the measured entropy from step to step, without torch.

The trainer measures the entropy of each step, asks a law for the value of the next one, and keeps the law's state in
the checkpoint. `simulation` lets a law run on a model of the entropy before any training.
"""

from __future__ import annotations

from megacov.plan.control.adaptive import AdaptiveLaw
from megacov.plan.control.entropic import EntropicLaw
from megacov.plan.control.law import ControlState, Law
from megacov.plan.control.pi import PiLaw
from megacov.plan.control.repo_r import RepoRLaw
from megacov.plan.control.simulation import Plant, Simulated, judge, simulate
from megacov.plan.control.target import Target

__all__ = [
    "AdaptiveLaw",
    "ControlState",
    "EntropicLaw",
    "Law",
    "PiLaw",
    "Plant",
    "RepoRLaw",
    "Simulated",
    "Target",
    "judge",
    "simulate",
]
