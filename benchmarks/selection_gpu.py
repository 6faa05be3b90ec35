"""Covariance and exact selection of KL-Cov on a GPU: the Triton kernels, the torch path, and one copy as the floor.

Run: python -m benchmarks.selection_gpu [--tokens 16777216]
"""

from __future__ import annotations

import argparse
import os

import torch
from torch import Tensor

from benchmarks.ops import gpu_ms, on_torch_path
from benchmarks.timing import interleaved_ms, print_table
from megacov.ops import covariance
from megacov.ops.kernels import dispatch
from megacov.selection import select_kl_cov


def main() -> None:
    """Print a table for each ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1 << 24)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return
    os.environ.setdefault(dispatch.VARIABLE, "1")
    log_probs = -torch.rand(options.tokens, device="cuda") * 5
    advantages = torch.randn(options.tokens, device="cuda")
    kept_mask = torch.ones_like(log_probs, dtype=torch.bool)
    token_ids = torch.arange(options.tokens, device="cuda")
    copies, fill = torch.empty_like(log_probs), torch.empty(8 << 30, dtype=torch.uint8, device="cuda")
    for ratio in (2e-4, 2e-3):

        def select(ratio: float = ratio) -> Tensor:
            cov = covariance(log_probs, advantages, kept_mask, group=None)
            return select_kl_cov(cov, kept_mask, token_ids, ratio=ratio, group=None)

        runs = {
            "megacov": select,
            "megacov, torch path": on_torch_path(select),
            "torch.topk, no covariance": lambda k=int(ratio * options.tokens): log_probs.topk(k).indices,
            "floor: one copy of the log-probs": lambda: copies.copy_(log_probs),
        }
        times = interleaved_ms(runs, num_rounds=options.rounds, milliseconds=lambda run: gpu_ms(run, fill))
        title = f"{torch.cuda.get_device_name()}, {options.tokens} tokens, ratio {ratio:g}"
        print_table(title, times, ours="megacov")


if __name__ == "__main__":
    main()
