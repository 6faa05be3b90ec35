"""Metrics of a run: the table of tags, how each is computed, where it is written, and the comparison of runs.

Nothing is re-exported, so that `compare` does not import torch.
"""
