"""Reinforcement learning of reasoning models on Megatron-Core, with exact and global control of token entropy."""

from __future__ import annotations

__version__ = "0.1.0"
