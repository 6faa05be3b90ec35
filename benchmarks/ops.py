"""Log-probs and entropy over one shard, compared with Megatron-Core's cross entropy plus a plain torch entropy.

The floor is derived from a measured copy of the logits. A forward must read them once, which is half a copy; forward
and backward must read them twice and write a gradient once, which is one and a half copies.
Run: python -m benchmarks.ops [--dtype bfloat16]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from benchmarks.timing import interleaved_ms, print_table
from megacov.ops import vocab_parallel_log_probs_and_entropy, vocab_parallel_sums


def plain_entropy(logits: Tensor) -> Tensor:
    log_p = torch.log_softmax(logits.float(), -1)
    return -(log_p.exp() * log_p).sum(-1)


def contenders(logits: Tensor, targets: Tensor) -> dict[str, Callable[[Tensor], tuple[Tensor, Tensor]]]:
    """Functions from logits [t, v] to log-probs and entropy; only the log-probs have a gradient."""
    group = parallel_state.get_tensor_model_parallel_group()

    def megatron(leaf: Tensor) -> tuple[Tensor, Tensor]:
        # A clone, because Megatron-Core writes to float32 logits.
        return -vocab_parallel_cross_entropy(leaf.clone(), targets), plain_entropy(leaf.detach())

    def megatron_fused(leaf: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = -fused_vocab_parallel_cross_entropy(leaf.clone().unsqueeze(1), targets.unsqueeze(1), group)
        return log_probs, plain_entropy(leaf.detach())

    return {
        "megacov": lambda leaf: vocab_parallel_log_probs_and_entropy(leaf, targets, tp_group=group),
        "Megatron-Core cross entropy + plain entropy": megatron,
        "Megatron-Core fused + plain entropy": megatron_fused,
    }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--vocab", type=int, default=19008, help="columns of the shard: 152064 over 8 ranks")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.NamedTemporaryFile() as store:
        dist.init_process_group("gloo", store=dist.FileStore(store.name, 1), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        logits = (torch.randn(options.tokens, options.vocab) * 3).to(getattr(torch, options.dtype)).requires_grad_()
        targets = torch.randint(0, options.vocab, (options.tokens,))
        named = contenders(logits, targets)
        group = parallel_state.get_tensor_model_parallel_group()
        forward = {name: lambda run=run: run(logits) for name, run in named.items()}
        forward["megacov with the sums of squares"] = lambda: vocab_parallel_sums(logits, targets, tp_group=group)
        both = {name: lambda run=run: torch.autograd.grad(run(logits)[0].sum(), logits) for name, run in named.items()}
        target_memory, source = torch.empty_like(logits.detach()), logits.detach()
        forward["one copy"] = both["one copy"] = lambda: target_memory.copy_(source)
        for title, runs, num_copies in (("forward", forward, 0.5), ("forward and backward", both, 1.5)):
            times = interleaved_ms(runs, num_rounds=options.rounds)
            times["floor"] = times.pop("one copy") * num_copies
            print_table(f"{title}, {options.dtype} [{options.tokens}, {options.vocab}]", times, ours="megacov")
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
