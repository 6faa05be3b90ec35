"""Ranks hold what `megacov check` plans: weights, gradients, Adam's state, and activations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks.ops import extra_bytes
from megacov.megatron.optimizer_state import distributed_optimizers
from megacov.plan import Layout, count_parameters, read_model_sizes
from megacov.plan.activations import ActivationSettings, Recompute, kept_after_layers, kept_by_layer
from megacov.plan.batch import Batch, plan_batch
from megacov.plan.memory import GRADIENT_BYTES, TrainerSettings, optimizer_bytes, plan_trainer
from megacov.trainer.clock import StepClock
from megacov.trainer.step import run_updates
from megacov.types import RolloutBatch
from tests.support.families import make_model
from tests.support.policies import (
    FLOAT32,
    KL_COV,
    laid_out_policy,
    laid_out_ranks,
    make_policy,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

POSITIONS = 48
FEW, MANY = 2, 4


@dataclass(frozen=True)
class Case:
    """A model on two ranks."""

    model: str
    layout: Layout
    recompute: Recompute = "none"
    dtype: str = "float32"


STATES = [
    Case("llama3", Layout(data=2)),
    Case("qwen3", Layout(data=2), dtype="bfloat16"),
    Case("qwen2", Layout(tensor=2), dtype="bfloat16"),
    Case("qwen2_yarn", Layout(context=2), dtype="bfloat16"),
    Case("qwen3_moe", Layout(data=2, expert=2), dtype="bfloat16"),
]
ACTIVATIONS = [
    Case("llama3", Layout(data=2)),
    Case("qwen2", Layout(tensor=2)),
    Case("qwen2", Layout(tensor=2, sequence=True)),
    Case("qwen3", Layout(tensor=2, sequence=True)),
    Case("qwen3", Layout(data=2), "selective"),
    Case("qwen3", Layout(tensor=2, sequence=True), "full"),
    Case("qwen2_yarn", Layout(context=2)),
]


def hold_state(folder: str, case: Case) -> dict[str, int]:
    """Bytes on this rank after a step of Adam."""
    layout = case.layout
    with laid_out_ranks(layout.tensor, context=layout.context, expert=layout.expert) as groups:
        policy = make_policy(groups, path=Path(folder), model=replace(FLOAT32, dtype=case.dtype))
        policy.optimizer.step()
        parameters = [parameter for chunk in policy.chunks for parameter in chunk.parameters()]
        own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        state = 0
        for each in distributed_optimizers(policy.optimizer):
            for group in each.optimizer.param_groups:
                for main in group["params"]:
                    state += 0 if main.untyped_storage().data_ptr() in own else main.nbytes
                    moments = each.optimizer.state[main]
                    state += sum(moments[name].nbytes for name in ("exp_avg", "exp_avg_sq"))
        return {
            "weights": sum(parameter.nbytes for parameter in parameters),
            "gradients": sum(parameter.main_grad.nbytes for parameter in parameters),
            "optimizer": state,
        }


def keep_activations(folder: str, case: Case) -> int:
    """Bytes that autograd keeps of one forward pass, without parameters; shared storage counts once."""
    layout = case.layout
    with laid_out_ranks(layout.tensor, context=layout.context) as groups:
        settings = replace(FLOAT32, recompute=case.recompute, sequence_parallel=layout.sequence)
        policy = make_policy(groups, path=Path(folder), model=settings)
        own = {p.untyped_storage().data_ptr() for chunk in policy.chunks for p in chunk.parameters()}
        kept: dict[int, torch.UntypedStorage] = {}

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in own:
                kept[storage.data_ptr()] = storage
            return tensor

        tokens = torch.full((1, POSITIONS), 5)
        positions = torch.arange(POSITIONS)[None]
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            output = policy.chunks[0](tokens, positions, None)
        del output
        return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.dist
def test_state_and_activations_are_those_of_the_plan(tmp_path: Path) -> None:
    found = run_cases(hold_state, [(str(_model(tmp_path, case)), case) for case in STATES], world_size=2)
    for case, by_rank in zip(STATES, found, strict=True):
        _check_state(_model(tmp_path, case), case, by_rank)
    work = [(str(_model(tmp_path, case, layers)), case) for case in ACTIVATIONS for layers in (FEW, MANY)]
    kept = run_cases(keep_activations, work, world_size=2)
    for index, case in enumerate(ACTIVATIONS):
        few, many = kept[2 * index][0], kept[2 * index + 1][0]
        _check_activations(_model(tmp_path, case), case, few, many)


def _model(folder: Path, case: Case, num_layers: int = MANY) -> Path:
    path = folder / f"{case.model}_{num_layers}"
    return path if path.exists() else make_model(path, case.model, num_hidden_layers=num_layers)


def _check_state(folder: Path, case: Case, by_rank: list[dict[str, int]]) -> None:
    sizes, layout = read_model_sizes(folder / "config.json"), case.layout
    count = count_parameters(sizes, layout, stage=0, vocab_divisible_by=FLOAT32.vocab_divisible_by)
    value_bytes = 4 if case.dtype == "float32" else 2
    for rank in by_rank:
        assert rank["weights"] == count.total * value_bytes, case
        assert rank["gradients"] == count.total * GRADIENT_BYTES, case
    # Shards of a parameter may be uneven; summed over all ranks, each copy of a shard has its state once.
    per_rank = count.dense / layout.optimizer_shards + count.expert / layout.expert_optimizer_shards
    planned = optimizer_bytes(value_bytes) * per_rank * len(by_rank)
    assert sum(rank["optimizer"] for rank in by_rank) == planned, case


def _check_activations(folder: Path, case: Case, few: int, many: int) -> None:
    sizes, layout = read_model_sizes(folder / "config.json"), case.layout
    settings = ActivationSettings(4, case.recompute, fused=False)
    of_a_layer = (many - few) / (MANY - FEW) / POSITIONS
    # Random states of a recomputed layer take a few bytes, whatever its size.
    assert of_a_layer == pytest.approx(kept_by_layer(sizes, layout, settings), abs=4), case
    rest = few / POSITIONS - FEW * of_a_layer
    # Besides the last norm, there are token ids, the statistics of that norm, and the angles of the rotary embedding.
    assert 0 <= rest - kept_after_layers(sizes, layout, settings) < 64, case


def fullest_moment(folder: str, length: int, num_samples: int) -> int:
    """Peak bytes allocated on the device during an optimizer step in bfloat16; on a CPU, beyond those at its start."""
    settings = replace(FLOAT32, dtype="bfloat16")
    with laid_out_policy(path=Path(folder), model=settings) as policy:
        whole = torch.ones(num_samples, length, dtype=torch.bool)
        batch = RolloutBatch(
            tokens=torch.randint(4, 14, (num_samples, length)),
            prompt_lengths=torch.ones(num_samples, dtype=torch.long),
            response_lengths=torch.full((num_samples,), length - 1),
            loss_mask=whole[:, 1:],
            rollout_log_probs=-torch.rand(num_samples, length - 1),
            group_ids=torch.zeros(num_samples, dtype=torch.long),
            rewards=torch.arange(num_samples).float(),
            max_response_length=length - 1,
        )
        step = step_settings(policy, num_updates=1, micro_batch_tokens=num_samples * length, packed=True)
        updates = prepare_mini_batches(policy, batch, KL_COV, step)
        run = partial(run_updates, policy, updates, KL_COV, clock=StepClock())
        if not torch.cuda.is_available():
            return extra_bytes(run)
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated()


@pytest.mark.dist
def test_the_gradient_of_the_logits_takes_no_memory_of_its_own(tmp_path: Path) -> None:
    length, vocab_size = 64, 1 << 16
    folder = make_model(tmp_path, "llama3", dtype=torch.bfloat16, num_hidden_layers=1, vocab_size=vocab_size)
    peak = run_cases(fullest_moment, [(str(folder), length, 4)], world_size=1)[0][0]
    logits = 4 * length * vocab_size * 2
    assert logits < peak < 1.7 * logits


@pytest.mark.gpu
def test_the_fullest_moment_on_a_device_is_within_a_tenth_of_the_plan(tmp_path: Path) -> None:
    length, num_samples = 2048, 4
    wide = {"hidden_size": 1024, "head_dim": 128, "intermediate_size": 4096, "max_position_embeddings": length}
    folder = make_model(tmp_path, "qwen3", dtype=torch.bfloat16, num_hidden_layers=8, vocab_size=65536, **wide)
    found = run_cases(fullest_moment, [(str(folder), length, num_samples)], world_size=1)[0][0]
    batch = plan_batch(Batch(num_samples, 1, 1, length - 1, 1, num_samples * length, 1), Layout())
    settings = TrainerSettings(
        value_bytes=2,
        recompute="none",
        fused=False,
        vocab_divisible_by=FLOAT32.vocab_divisible_by,
        with_reference=False,
        bucket_bytes=0,
        saves=False,
    )
    (stage,) = plan_trainer(read_model_sizes(folder / "config.json"), Layout(), batch, settings)
    assert found == pytest.approx(stage.resident + stage.training, rel=0.1)
