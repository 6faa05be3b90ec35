"""Advantages: how much better a sample is than the others of its prompt."""

from megacov.advantages.group_relative import group_relative
from megacov.advantages.registry import ADVANTAGES
from megacov.advantages.rloo import rloo
from megacov.advantages.soft import soft_advantages

__all__ = ["ADVANTAGES", "group_relative", "rloo", "soft_advantages"]
