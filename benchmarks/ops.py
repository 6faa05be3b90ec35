"""Log-probs and entropy over one shard, beside the functions of Megatron-Core, verl, slime, NeMo-RL and Liger.

Their code is found as benchmarks/peers.py says; a peer that is not there has a line with the reason.
The floor is derived from a measured copy of the logits. A forward must read them once, which is half a copy; forward
and backward must read them twice and write a gradient once, which is one and a half copies. megacov writes the gradient
over the logits, as in training; Megatron-Core and verl copy float32 logits, which their functions write to as well.
On a CPU the loops that numba compiles run, beside the torch path; with MEGACOV_KERNELS=0 the torch path runs alone. On
a GPU (--device cuda) the Triton kernels run, beside the torch path and Megatron-Core's fused cross entropy without any
entropy. Times are the GPU's: a fill of other memory comes first, so that the host queues all launches meanwhile.
With --hidden it times the form without logits, from hidden states so wide, with and without the sums of squares.
Run: python -m benchmarks.ops [--dtype bfloat16] [--hidden 896]
     python -m benchmarks.ops --device cuda --dtype bfloat16 --tokens 8192 [--vocab 152064]
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.fusions.fused_cross_entropy import fused_vocab_parallel_cross_entropy
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.op_peers import peer_functions
from benchmarks.timing import interleaved_ms, print_goals, print_table
from megacov.ops import LinearSums, linear_sums, vocab_parallel_log_probs_and_entropy, vocab_parallel_sums
from megacov.ops.kernels import dispatch

GOALS = {"forward": {"slime": 4.0, "verl": 8.0}, "forward and backward": {"slime": 2.5, "verl": 5.0}}


class WithValuesOf(torch.autograd.Function):
    """A leaf of autograd with the values of a buffer, which may be overwritten as a model's logits may."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, buffer: Tensor) -> Tensor:
        return buffer.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


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

    def megatron_fused_alone(leaf: Tensor) -> tuple[Tensor, Tensor]:
        own = leaf.clone() if leaf.dtype == torch.float32 else leaf
        log_probs = -fused_vocab_parallel_cross_entropy(own.unsqueeze(1), targets.unsqueeze(1), group)
        return log_probs, log_probs.detach()

    def ours(leaf: Tensor) -> tuple[Tensor, Tensor]:
        return vocab_parallel_log_probs_and_entropy(leaf, targets, tp_group=group)

    # Holds the logits in the first round and gradients then; times do not depend on values.
    buffer = logits.detach().clone()

    def ours_over_logits(leaf: Tensor) -> tuple[Tensor, Tensor]:
        given = WithValuesOf.apply(leaf, buffer)
        return vocab_parallel_log_probs_and_entropy(given, targets, tp_group=group, overwrites_logits=True)

    named = {
        "megacov": ours_over_logits,
        "megacov, gradient in memory of its own": ours,
        "Megatron-Core cross entropy + plain entropy": megatron,
        "Megatron-Core fused + plain entropy": megatron_fused,
    }
    if dispatch.row_kernels(logits.detach()):
        named["megacov, torch path"] = ours_over_logits
    if logits.is_cuda:
        named["Megatron-Core fused, no entropy"] = megatron_fused_alone
    return named | peer_functions(logits, targets, group)


def on_torch_path(run: Callable[[], object]) -> Callable[[], object]:
    """The same call with the kernels off, in backward too."""

    def run_without_kernels() -> object:
        with mock.patch.dict(os.environ, {dispatch.VARIABLE: "0"}):
            return run()

    return run_without_kernels


def extra_bytes(run: Callable[[], object]) -> int:
    """Largest memory that a forward holds on a CPU at one time, beyond what was there before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        kept = run()
    del kept
    assert profiled.profiler is not None
    events = [each for each in profiled.profiler.kineto_results.events() if each.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def gpu_ms(run: Callable[[], object], fill: Tensor) -> float:
    """Milliseconds that the work takes on the GPU, if the host queues it within the time of the fill."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    fill.zero_()
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end)


def clock_of(device: str) -> dict[str, Any]:
    """How to time on a device, for `interleaved_ms`."""
    if device == "cpu":
        return {}
    fill = torch.empty(8 << 30, dtype=torch.uint8, device=device)
    return {"milliseconds": lambda run: gpu_ms(run, fill)}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--vocab", type=int, default=19008, help="columns of the shard: 152064 over 8 ranks")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--hidden", type=int, help="time the form without logits alone")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("skipped: torch sees no CUDA device")
        return
    os.environ.setdefault(dispatch.VARIABLE, "1")
    torch.set_num_threads(1)
    with tempfile.NamedTemporaryFile() as store:
        backend = "nccl" if options.device == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.FileStore(store.name, 1), rank=0, world_size=1)
        parallel_state.initialize_model_parallel()
        run = compare if options.hidden is None else compare_without_logits
        run(options)
        dist.destroy_process_group()


def compare(options: argparse.Namespace) -> None:
    """Time all contenders, forward and then forward and backward."""
    dtype = getattr(torch, options.dtype)
    logits = torch.empty(options.tokens, options.vocab, dtype=dtype, device=options.device)
    logits.normal_(std=3.0).requires_grad_()
    targets = torch.randint(0, options.vocab, (options.tokens,), device=options.device)
    named = contenders(logits, targets)
    group = parallel_state.get_tensor_model_parallel_group()
    forward = {name: lambda run=run: run(logits) for name, run in named.items()}
    forward["megacov with the sums of squares"] = lambda: vocab_parallel_sums(logits, targets, tp_group=group)
    both = {name: lambda run=run: torch.autograd.grad(run(logits)[0].sum(), logits) for name, run in named.items()}
    target_memory, source = torch.empty_like(logits.detach()), logits.detach()
    forward["one copy"] = both["one copy"] = lambda: target_memory.copy_(source)
    where = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    for title, runs, num_copies in (("forward", forward, 0.5), ("forward and backward", both, 1.5)):
        runs = {name: on_torch_path(run) if name == "megacov, torch path" else run for name, run in runs.items()}
        times = interleaved_ms(runs, num_rounds=options.rounds, **clock_of(options.device))
        times["floor"] = [each * num_copies for each in times.pop("one copy")]
        print_table(f"{title}, {where}, {options.dtype} [{options.tokens}, {options.vocab}]", times, ours="megacov")
        if options.device == "cpu":
            print_goals(times, GOALS[title], ours="megacov")
    if options.device == "cpu":
        print("\nforward, memory at one time beyond the logits, as a share of them")
        size = logits.nbytes
        for name in (name for name in named if name in ("megacov", "slime", "verl", "NeMo-RL")):
            print(f"  {name:45s} {100 * extra_bytes(forward[name]) / size:9.2f} %")


@torch.no_grad()
def compare_without_logits(options: argparse.Namespace) -> None:
    """Time the forward that passes before an update make at TP 1 and 2, with the sums of squares and without."""
    where = {"dtype": getattr(torch, options.dtype), "device": options.device}
    hidden = torch.randn(options.tokens, options.hidden, **where)
    weight = torch.randn(options.vocab, options.hidden, **where) / options.hidden**0.5
    targets = torch.randint(0, options.vocab, (options.tokens,), device=options.device)

    def sums(*, with_squares: bool) -> LinearSums:
        return linear_sums(hidden, weight, targets, tp_group=None, with_squares=with_squares)

    runs = {
        "megacov without logits": lambda: sums(with_squares=False),
        "the same with the sums of squares": lambda: sums(with_squares=True),
    }
    times = interleaved_ms(runs, num_rounds=options.rounds, **clock_of(options.device))
    title = f"forward, {options.dtype} [{options.tokens}, {options.hidden}] x [{options.vocab}, {options.hidden}]"
    print_table(title, times, ours="megacov without logits")


if __name__ == "__main__":
    main()
