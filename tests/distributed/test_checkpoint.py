"""Weights and optimizer state come back exactly, in whatever layout they are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from megacov.megatron.checkpoint import (
    BackgroundSave,
    load_checkpoint,
    make_save_group,
    plan_save,
    write_format,
)
from megacov.megatron.model import ModelSettings
from megacov.megatron.optimizer_state import adam_steps, share_out
from megacov.megatron.policy import Policy
from megacov.trainer.clock import PhaseClock
from megacov.trainer.step import plan_updates, run_updates
from tests.support.policies import KL_COV, laid_out_ranks, make_policy, make_qwen2, make_rollout_batch, step_settings
from tests.support.run_ranks import run_cases

# Tensor, pipeline, virtual pipeline, context; the rest is data parallel.
Layout = tuple[int, int, int, int]
ONE: Layout = (1, 1, 1, 1)
BY_WORLD: dict[int, list[Layout]] = {
    1: [ONE],
    2: [(2, 1, 1, 1), (1, 2, 2, 1), ONE, (1, 1, 1, 2)],
    4: [(2, 2, 2, 1), (4, 1, 1, 1), (2, 1, 1, 1), ONE],
}
SAVED_BY: list[tuple[int, Layout]] = [(1, ONE), (2, (1, 1, 1, 2)), (4, (2, 1, 1, 1)), (4, (2, 2, 2, 1))]


def _update(policy: Policy, seed: int) -> None:
    settings = step_settings(policy, num_updates=2)
    updates = plan_updates(policy, make_rollout_batch(seed=seed), KL_COV, settings)
    run_updates(policy, updates, KL_COV, seed=0, first_update=0, clock=PhaseClock())


def _save(policy: Policy, folder: Path) -> None:
    plan = plan_save(policy.chunks, policy.optimizer, folder)
    group = make_save_group(deadline_s=60)
    save = BackgroundSave(plan, folder, group, write_more=lambda _: [], publish=lambda _: write_format(folder))
    # What training does meanwhile must not reach the files.
    _update(policy, seed=9)
    save.wait(timeout_s=60)
    assert save.is_done and save.failure is None, save.failure


def _tensors(folder: Path) -> dict[str, Tensor]:
    from megatron.core.dist_checkpointing import load_plain_tensors

    plain = load_plain_tensors(str(folder))
    # Rows of padding differ with the layout.
    return {key: value[:16] if "embedding" in key or "output_layer" in key else value for key, value in plain.items()}


def _case(model: str, layout: Layout, dtype: str, load: str, save: str, train: bool) -> dict:
    """Load or train, save, and go on; what is on disk afterwards and the weights at the end."""
    tensor, pipeline, virtual, context = layout
    settings = ModelSettings(dtype=dtype, vocab_divisible_by=3, transformer_engine="off", virtual_pipeline=virtual)
    with laid_out_ranks(tensor, pipeline, virtual_pipeline=virtual, context=context) as groups:
        policy = make_policy(groups, path=Path(model), model=settings)
        if train:
            _update(policy, seed=1)
        if load:
            load_checkpoint(policy.chunks, policy.optimizer, Path(load), adam_steps=2)
        Path(save).mkdir(exist_ok=True)
        torch.distributed.barrier()
        _save(policy, Path(save))
        weights, steps = dict(policy.hf_weights()), adam_steps(policy.optimizer)
        return {"disk": _tensors(Path(save)), "weights": weights, "steps": steps}


@pytest.mark.dist
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_layout_loads_what_any_layout_saved(dtype: str, tmp_path: Path) -> None:
    tied = make_qwen2(tmp_path / "model", num_layers=4, tied=True)
    wholes = {}
    for world_size, layout in SAVED_BY:
        name = tmp_path / f"saved_{world_size}_{'_'.join(map(str, layout))}"
        case = (str(tied), layout, dtype, "", str(name), True)
        wholes[name] = run_cases(_case, [case], world_size=world_size)[0][0]
    for world_size, layouts in BY_WORLD.items():
        cases = [
            (str(tied), layout, dtype, str(saved), str(tmp_path / f"{saved.name}_in_{world_size}_{i}"), False)
            for i, layout in enumerate(layouts)
            for saved in wholes
        ]
        for case, by_rank in zip(cases, run_cases(_case, cases, world_size=world_size), strict=True):
            original, again = wholes[Path(case[3])], by_rank[0]
            assert again["steps"] == original["steps"]
            assert again["disk"].keys() == original["disk"].keys()
            for key, value in original["disk"].items():
                assert torch.equal(again["disk"][key], value), (case, key)
            for key, value in original["weights"].items():
                torch.testing.assert_close(
                    again["weights"][key], value, rtol=1e-5, atol=1e-6 if dtype == "float32" else 2e-3
                )


def test_parameters_are_shared_out_evenly() -> None:
    sizes = [100, 40, 30, 30, 7, 1]
    owners = share_out(sizes, num_owners=2)
    assert owners == [0, 1, 1, 1, 0, 1]
    assert share_out(sizes, num_owners=1) == [0] * 6
