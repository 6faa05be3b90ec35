"""Selects the tokens that a method acts on: exactly, over a whole process group, and the same in every layout."""

from __future__ import annotations

from megacov.selection.clip_cov import select_clip_cov
from megacov.selection.high_entropy import select_high_entropy
from megacov.selection.kl_cov import select_kl_cov
from megacov.selection.mean_bound import smallest_with_mean
from megacov.selection.quantile import global_quantile
from megacov.selection.quota import selection_quota
from megacov.selection.registry import SELECTORS, SelectionInputs, Selector, get_selector
from megacov.selection.threshold import selection_margin
from megacov.selection.top_k import global_top_k

__all__ = [
    "SELECTORS",
    "SelectionInputs",
    "Selector",
    "get_selector",
    "global_quantile",
    "global_top_k",
    "select_clip_cov",
    "select_high_entropy",
    "select_kl_cov",
    "selection_margin",
    "selection_quota",
    "smallest_with_mean",
]
