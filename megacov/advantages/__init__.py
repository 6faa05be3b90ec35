"""Advantages: how much better a sample is than what its prompt usually yields."""

from megacov.advantages.group_relative import group_relative

__all__ = ["group_relative"]
