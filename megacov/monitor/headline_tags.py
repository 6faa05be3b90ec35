"""The two tags that tell most of a run. They stand apart so that reading a run back needs no torch."""

from __future__ import annotations

REWARD_TAG, ENTROPY_TAG = "reward/mean", "entropy/token_mean"
