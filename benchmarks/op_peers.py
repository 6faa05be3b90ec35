"""Log-probs and entropy by the functions of verl, slime, NeMo-RL and Liger, as those projects call them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch import Tensor
from torch.distributed import ProcessGroup

from benchmarks.peers import NEMO_RL, SLIME, VERL, PeerMissingError, load

Function = Callable[[Tensor], tuple[Tensor, Tensor]]

_CHUNK = 256  # tokens of NeMo-RL's chunks


def peer_functions(logits: Tensor, targets: Tensor, group: ProcessGroup) -> dict[str, Function]:
    """Find the peers, and print a line for each that is not there.

    Args:
        logits: [t, v/tp], of which device and dtype are read.
        targets: [t] int64.
        group: ranks that hold the other shards.

    Returns:
        Functions from logits to log-probs and entropy, by the name of the peer. Only log-probs have a gradient.
    """
    makers: dict[str, Callable[[Tensor, ProcessGroup], Function]] = {"verl": _verl, "slime": _slime, "NeMo-RL": _nemo}
    found: dict[str, Function] = {}
    for name, make in makers.items():
        try:
            found[name] = make(targets, group)
        except PeerMissingError as error:
            print(f"skipped: {error}")
    if not logits.is_cuda:
        print("skipped: Liger: its kernels take no CPU tensors")
        return found
    try:
        found["Liger, no entropy"] = _liger(targets, group)
    except ImportError as error:
        print(f"skipped: Liger: {error}; pip install liger-kernel")
    return found


def _verl(targets: Tensor, group: ProcessGroup) -> Function:
    # Its small compiled function falls back to plain torch on a machine without a C++ compiler.
    torch._dynamo.config.suppress_errors = True
    names = ("_VocabParallelEntropy", "vocab_parallel_entropy")
    file = "verl/utils/megatron/tensor_parallel.py"
    entropy = load(VERL, file, names, torch=torch, dist=dist, mpu=parallel_state)["vocab_parallel_entropy"]

    def run(leaf: Tensor) -> tuple[Tensor, Tensor]:
        # verl clones too: its cross entropy is Megatron-Core's, which writes to float32 logits.
        return -tensor_parallel.vocab_parallel_cross_entropy(leaf.clone(), targets), entropy(leaf.detach())

    return run


def _slime(targets: Tensor, group: ProcessGroup) -> Function:
    helpers = ("_maybe_all_reduce", "_get_vocab_parallel_rank_size")
    names = ("_VocabParallelLogProbEntropy", *helpers)
    function: Any = load(SLIME, "slime/utils/ppo_utils.py", names, torch=torch, dist=dist)[names[0]]

    def run(leaf: Tensor) -> tuple[Tensor, Tensor]:
        log_probs, entropy = function.apply(leaf, targets, None, group, True, False)
        return log_probs, entropy

    return run


def _nemo(targets: Tensor, group: ProcessGroup) -> Function:
    helpers = ("_compute_distributed_log_softmax", "_compute_distributed_log_softmax_with_grad")
    names = ("ChunkedDistributedLogprob", "ChunkedDistributedEntropy", *helpers)
    found = load(NEMO_RL, "nemo_rl/distributed/model_utils.py", names, torch=_with_nn_functional())

    def run(leaf: Tensor) -> tuple[Tensor, Tensor]:
        batch = leaf.unsqueeze(0)
        log_probs = found[names[0]].apply(batch, targets.unsqueeze(0), 0, leaf.shape[1], _CHUNK, group)
        return log_probs, -found[names[1]].apply(batch.detach(), _CHUNK, group, True)

    return run


def _with_nn_functional() -> Any:
    import torch.distributed.nn.functional

    return torch


def _liger(targets: Tensor, group: ProcessGroup) -> Function:
    from liger_kernel.ops.vocab_parallel_cross_entropy import LigerVocabParallelCEFunction

    def run(leaf: Tensor) -> tuple[Tensor, Tensor]:
        log_probs = -LigerVocabParallelCEFunction.apply(leaf, targets, group)
        return log_probs, log_probs.detach()

    return run
