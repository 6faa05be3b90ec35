"""The policy of `examples/tiny_policy` on the ranks of a test, and a rollout batch for it without a server."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.advantages import group_relative
from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import MicroBatchSettings
from megacov.losses import get_loss
from megacov.megatron.model import ModelSettings
from megacov.megatron.model_shape import read_model_shape
from megacov.megatron.optimizer import AdamSettings
from megacov.megatron.policy import Policy, build_policy
from megacov.megatron.process_groups import lay_out_ranks, leave_layout
from megacov.parallel.collectives import all_reduce_sum
from megacov.parallel.groups import ParallelGroups
from megacov.selection import get_selector
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.optimizer_step.mini_batch import (
    MiniBatch,
)
from megacov.trainer.optimizer_step.preparation import prepare_updates
from megacov.trainer.step import StepSettings
from megacov.types import RolloutBatch

TINY_POLICY = Path(__file__).parents[2] / "examples" / "tiny_policy"
# Adam divides a gradient by its own size, so rounding noise in a gradient that should be 0 (the key bias) would make
# a full step; with this epsilon it stays noise.
ADAM = AdamSettings(
    lr=3e-5,
    min_lr=0.0,
    warmup_steps=0,
    decay="constant",
    decay_steps=100,
    beta1=0.9,
    beta2=0.999,
    eps=1e-5,
    weight_decay=0.0,
    clip_grad=1.0,
)
TEMPERATURE = 0.8
# 16 tokens are padded to 18 or 24, so every layout has padding.
FLOAT32 = ModelSettings(dtype="float32", vocab_divisible_by=3, transformer_engine="off")
GRPO = Algorithm(
    advantages=group_relative,
    loss=get_loss("ppo_clip"),
    loss_hyperparameters={"clip_low": 0.2, "clip_high": 0.2, "dual_clip": None},
    select=None,
    selection_hyperparameters={},
    scope="mini_batch",
    log_probs="old",
    aggregation="token_mean",
    constant_norm=100,
    entropy_coef=0.0,
    ref_kl_coef=0.0,
    ref_kl_estimator="k3",
    seed=0,
)
KL_COV = replace(
    GRPO,
    loss=get_loss("kl_cov"),
    loss_hyperparameters={"kl_coef": 1.0, "estimator": "abs"},
    select=get_selector("kl_cov"),
    selection_hyperparameters={"ratio": 0.1},
    log_probs="current",
)
KL_COV_WITH_TERMS = replace(KL_COV, entropy_coef=0.01, ref_kl_coef=0.1)
CLIP_COV = replace(
    GRPO,
    loss=get_loss("clip_cov"),
    loss_hyperparameters={"clip_low": 1.0, "clip_high": 1.0, "dual_clip": None},
    select=get_selector("clip_cov"),
    selection_hyperparameters={"ratio": 0.1, "lower": 0.0, "upper": 5.0},
    log_probs="current",
)


@contextmanager
def laid_out_ranks(
    tensor: int = 1, pipeline: int = 1, *, context: int = 1, virtual_pipeline: int = 1, expert: int = 1
) -> Iterator[ParallelGroups]:
    """Lay out the ranks of an initialised job, and destroy the layout afterwards."""
    # Reference cycles keep an earlier policy alive, with its groups and their threads, until it is collected.
    gc.collect()
    groups = lay_out_ranks(
        tensor=tensor,
        pipeline=pipeline,
        virtual_pipeline=virtual_pipeline,
        context=context,
        expert=expert,
        timeout_s=60,
        control_timeout_s=60,
        seed=1,
    )
    yield groups
    # Not after a failure: the rank then ends at once and reports why.
    leave_layout(groups)


def make_policy(
    groups: ParallelGroups,
    *,
    path: Path = TINY_POLICY,
    model: ModelSettings = FLOAT32,
    adam: AdamSettings = ADAM,
    with_reference: bool = False,
) -> Policy:
    """Build the policy of a model folder in a layout."""
    shape = read_model_shape(path)
    return build_policy(path, shape, groups, model, adam, temperature=TEMPERATURE, with_reference=with_reference)


@contextmanager
def laid_out_policy(tensor: int = 1, pipeline: int = 1, **options: Any) -> Iterator[Policy]:
    """Lay out the ranks and build a policy; the options are those of `make_policy`."""
    with laid_out_ranks(tensor, pipeline) as groups:
        yield make_policy(groups, **options)


def step_settings(
    policy: Policy, *, num_updates: int, micro_batch_tokens: int = 36, packed: bool = False
) -> StepSettings:
    """Settings of a step in the layout of a policy."""
    groups, config = policy.groups, policy.chunks[0].config
    return StepSettings(
        num_updates=num_updates,
        micro_batches=MicroBatchSettings(
            tokens=micro_batch_tokens,
            layout=SequenceLayout(
                packed=packed,
                cp_rank=groups.cp_rank,
                cp_size=groups.cp_size,
                share_multiple=groups.tp_size if config.sequence_parallel else 1,
            ),
            dp_rank=groups.dp_rank,
            dp_size=groups.dp_size,
            same_count=groups.ep_size > 1,
            count_multiple=groups.pp_size if len(policy.chunks) > 1 else 1,
        ),
        log_every=1,
        cov_histogram_every=0,
    )


def prepare_mini_batches(
    policy: Policy, batch: RolloutBatch, algorithm: Algorithm, settings: StepSettings, *, first_update: int = 0
) -> list[MiniBatch]:
    """The part of `train_step` between the rollout and the first optimizer step, without the check of the mismatch."""
    num_updates = settings.num_updates
    return prepare_updates(
        policy, batch, algorithm, settings.micro_batches, num_updates=num_updates, first_update=first_update
    )[0]


def own_log_probs(policy: Policy, batch: RolloutBatch) -> Tensor:
    """The trainer's log-probs of this rank's tokens, on all pipeline stages, in the place of the server's."""
    found = torch.zeros(batch.rollout_log_probs.numel(), dtype=torch.float64)
    for planned in prepare_mini_batches(policy, batch, GRPO, step_settings(policy, num_updates=2)):
        for part in planned.inputs:
            found[part.token_ids] = part.old_log_probs.double()
    return all_reduce_sum(found, group=policy.groups.pp).view_as(batch.rollout_log_probs).float()


def make_rollout_batch(num_samples: int = 16, *, seed: int = 0) -> RolloutBatch:
    """Random tokens with ragged lengths; one sample is empty, one has no loss token, and one repeats another."""
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(2, 5, (num_samples,), generator=generator)
    responses = torch.randint(1, 9, (num_samples,), generator=generator)
    responses[3] = 0
    tokens = torch.randint(4, 14, (num_samples, 12), generator=generator)
    prompts[5], responses[5], tokens[5] = prompts[4], responses[4], tokens[4]
    tokens[torch.arange(12) >= (prompts + responses)[:, None]] = 0
    loss_mask = torch.arange(8) < responses[:, None]
    loss_mask[6] = False
    rewards = torch.randint(0, 2, (num_samples,), generator=generator).float()
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=prompts,
        response_lengths=responses,
        loss_mask=loss_mask,
        rollout_log_probs=-torch.rand(num_samples, 8, generator=generator),
        group_ids=torch.arange(num_samples) // 4,
        rewards=rewards,
        max_response_length=8,
    )


def make_qwen2(folder: Path, *, num_layers: int = 2, tied: bool = True) -> Path:
    """A random model of the same family, optionally with tied embeddings."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        rope_theta=5e4,
        tie_word_embeddings=tied,
    )
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return folder
