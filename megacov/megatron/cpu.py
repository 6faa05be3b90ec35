"""Megatron-Core on a CPU: replaces the `torch.cuda` calls that Megatron makes, and leaves Megatron unmodified.

Megatron-Core gives its device as `torch.cuda.current_device()` or `device="cuda"`. On a machine without a GPU,
`install` replaces those entry points of torch, once per process, so that unmodified Megatron models, optimizers and
pipeline schedules run over gloo. Where CUDA works, `install` does nothing.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import torch

CPU = torch.device("cpu")
# The tensor factories through which Megatron-Core writes device="cuda" or pin_memory=True.
_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "rand", "randn", "tensor", "zeros", "zeros_like")

_installed = False


class _NoStream:
    """Stands in for a CUDA stream or event, which a CPU does not need: its work is already in order.

    It is a class because transformers, if imported later, uses `torch.cuda.Stream | None` as a type.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Accept any arguments of a stream or event."""

    def __getattr__(self, name: str) -> Callable[..., _NoStream]:
        # Calls return this object, so that calls on their results (an event that a stream recorded) work too.
        return lambda *args, **kwargs: self


def _is_cuda(device: object) -> bool:
    return isinstance(device, int) or str(device).startswith("cuda")


def _on_cpu(factory: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor:
        device = kwargs.get("device")
        if device is not None and _is_cuda(device):
            kwargs["device"] = CPU
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


def _cuda_spelling(tensor_type: Callable[..., Any]) -> Callable[..., Any]:
    """Make `Tensor.type()` return "torch.cuda.FloatTensor", by which DistributedOptimizer sorts parameters."""

    @functools.wraps(tensor_type)
    def type_(self: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        name = tensor_type(self, *args, **kwargs)
        return name.replace("torch.", "torch.cuda.", 1) if not args and not kwargs and ".cuda." not in name else name

    return type_


def _install_devices() -> None:
    for name in _FACTORIES:
        setattr(torch, name, _on_cpu(getattr(torch, name)))
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    torch.Tensor.type = _cuda_spelling(torch.Tensor.type)  # type: ignore[method-assign]
    cuda: Any = torch.cuda
    cuda.current_device = lambda: CPU
    cuda.set_device = lambda *args: None
    cuda.synchronize = lambda *args: None
    cuda.empty_cache = lambda: None
    cuda.FloatTensor = torch.FloatTensor
    cuda.current_stream = cuda.default_stream = lambda *args: _NoStream()
    cuda.Stream = cuda.Event = _NoStream
    cuda.stream = lambda *args: contextlib.nullcontext()


def _install_random() -> None:
    """Route Megatron's random-state tracker to the CPU generator, so that dropout depends only on its seed."""
    import megatron.core.tensor_parallel.random as megatron_random

    cuda: Any = torch.cuda
    cuda.manual_seed = torch.manual_seed
    cuda.get_rng_state = lambda *args: torch.get_rng_state()
    cuda.set_rng_state = lambda state, *args: torch.set_rng_state(state)
    cuda.default_generators = (torch.default_generator,)
    tracker: Any = megatron_random
    tracker._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    tracker._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)


def _install_experts() -> None:
    """Give the token dispatcher its split sizes as NumPy arrays. It skips that conversion for a tensor on a CPU, and
    torch's all-to-all accepts no tensor."""
    import megatron.core.transformer.moe.token_dispatcher as dispatcher

    def to_cpu(tensor: Any, as_numpy: bool = False, record_stream: bool = False) -> Any:
        return tensor.numpy() if as_numpy and torch.is_tensor(tensor) else tensor

    module: Any = dispatcher
    module.maybe_move_tensor_to_cpu = to_cpu


def install() -> None:
    """Make Megatron-Core's CUDA calls run on the CPU of this process. Idempotent; does nothing where CUDA works."""
    global _installed
    if _installed or torch.cuda.is_available():
        return
    _install_devices()
    _install_random()
    _install_experts()
    _installed = True
