"""Advantages: how much better a sample is than the others of its prompt."""

from megacov.advantages.group_relative import group_relative

__all__ = ["group_relative"]
