"""Megatron's distributed Adam and its learning-rate schedule, from plain numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, get_megatron_optimizer
from megatron.core.optimizer.clip_grads import clip_grad_by_total_norm_fp32
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megacov.megatron.optimizer_state import distributed_optimizers


@dataclass(frozen=True)
class AdamSettings:
    """Adam and its schedule. Steps are optimizer steps; `clip_grad` is a global L2 norm, 0 for no clipping."""

    lr: float
    min_lr: float
    warmup_steps: int
    decay: str
    decay_steps: int
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    clip_grad: float


def build_optimizer(
    chunks: list[DistributedDataParallel], settings: AdamSettings, *, dtype: torch.dtype
) -> tuple[MegatronOptimizer, OptimizerParamScheduler]:
    """Build a distributed Adam (state sharded over data-parallel ranks) with its schedule.

    Weights must be loaded before: in bf16 training they are copied into float32 main parameters here.
    Collectives: none beyond Megatron's own group look-ups.

    Args:
        chunks: the virtual stages of this rank.
        settings: hyperparameters of Adam and the schedule.
        dtype: dtype of the parameters.

    Returns:
        The optimizer and its schedule.
    """
    config = OptimizerConfig(
        optimizer="adam",
        lr=settings.lr,
        min_lr=settings.min_lr,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        adam_eps=settings.eps,
        clip_grad=settings.clip_grad,
        bf16=dtype == torch.bfloat16,
        params_dtype=dtype,
        use_distributed_optimizer=True,
    )
    optimizer = get_megatron_optimizer(config, chunks, use_gloo_process_groups=False)
    scheduler = OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=settings.lr,
        min_lr=settings.min_lr,
        lr_warmup_steps=settings.warmup_steps,
        lr_decay_steps=max(settings.decay_steps, settings.warmup_steps + 1),
        lr_decay_style=settings.decay,
        start_wd=settings.weight_decay,
        end_wd=settings.weight_decay,
        wd_incr_steps=max(settings.decay_steps, 1),
        wd_incr_style="constant",
    )
    if settings.warmup_steps > 0:
        # Megatron starts a warm-up at learning rate 0, and the first optimizer step would do nothing.
        scheduler.step(increment=1)
    return optimizer, scheduler


def step_with_norm(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Clip the gradient and update the weights, as `optimizer.step` does, by a norm that is already known.

    `step` would copy the gradient into the main gradients again, and sum its norm over all ranks again.

    Collectives: Megatron's all-gather of the updated parameters.

    Args:
        optimizer: with main gradients, since `prepare_grads`.
        grad_norm: global norm of the gradient; finite, equal on all ranks.
    """
    for each in distributed_optimizers(optimizer):
        parameters = each.get_parameters()
        if parameters and each.config.clip_grad > 0.0:
            clip_grad_by_total_norm_fp32(parameters, each.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()
