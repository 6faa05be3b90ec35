"""Weights and optimizer state load exactly in any layout, and export as Hugging Face tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacov.errors import CheckpointError
from megacov.megatron.checkpoint import BackgroundSave, load_checkpoint, make_save_group, plan_save, write_format
from megacov.megatron.export import read_hf_weights
from megacov.megatron.optimizer_state import adam_steps, distributed_optimizers, share_out
from megacov.megatron.policy import Policy
from megacov.parallel.collectives import all_gather
from megacov.trainer.clock import StepClock
from megacov.trainer.step import run_updates
from tests.support.families import make_model
from tests.support.policies import (
    FLOAT32,
    KL_COV,
    laid_out_ranks,
    make_policy,
    make_rollout_batch,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases


@dataclass(frozen=True)
class Layout:
    """How a model is split over ranks; the remaining dimension is data parallel."""

    ranks: int = 1
    tensor: int = 1
    pipeline: int = 1
    virtual: int = 1
    context: int = 1
    expert: int = 1
    sequence: bool = False


DENSE = (
    Layout(),
    Layout(2, context=2),
    Layout(2, tensor=2),
    Layout(2),
    Layout(4, tensor=2),
    Layout(4, tensor=2, pipeline=2, virtual=2, sequence=True),
)
WITH_EXPERTS = (Layout(), Layout(2, expert=2), Layout(4, tensor=2, expert=2, sequence=True))
# Model, dtype, whether Adam counts its steps like Apex's; layouts that save; layouts that load.
KINDS: dict[str, tuple[str, str, bool, tuple[Layout, ...], tuple[Layout, ...]]] = {
    "float32": ("llama3", "float32", False, (DENSE[1], DENSE[4], DENSE[5]), DENSE),
    "bfloat16": ("qwen3_yarn", "bfloat16", False, (DENSE[3], DENSE[5]), (DENSE[0], DENSE[2], DENSE[4])),
    "grouped_steps": ("qwen2", "float32", True, (DENSE[4],), (DENSE[0], DENSE[3])),
    "experts": ("qwen3_moe", "float32", False, WITH_EXPERTS[1:], WITH_EXPERTS),
}


class GroupedAdam(torch.optim.Optimizer):
    """An Adam that counts its steps in the parameter group, as those of Apex and Transformer Engine do."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        del closure
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for parameter in group["params"]:
                state = self.state[parameter]
                for kind in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(kind, torch.zeros_like(parameter))
                state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
                state["exp_avg_sq"].lerp_(parameter.grad.square(), 1 - beta2)
                mean = state["exp_avg"] / (1 - beta1 ** group["step"])
                mean_square = state["exp_avg_sq"] / (1 - beta2 ** group["step"])
                parameter.sub_(group["lr"] * mean / (mean_square.sqrt() + group["eps"]))


def _policy(groups: Any, model: str, layout: Layout, dtype: str, grouped: bool) -> Policy:
    settings = replace(FLOAT32, dtype=dtype, virtual_pipeline=layout.virtual, sequence_parallel=layout.sequence)
    policy = make_policy(groups, path=Path(model), model=settings)
    for each in distributed_optimizers(policy.optimizer) if grouped else ():
        adam = GroupedAdam([torch.nn.Parameter(torch.zeros(1))], each.optimizer.defaults)
        # A distributed optimizer steps views of the model's parameters, which a new optimizer would refuse.
        adam.param_groups = each.optimizer.param_groups
        each.optimizer = adam
    return policy


def _update(policy: Policy, seed: int) -> None:
    settings = step_settings(policy, num_updates=2)
    updates = prepare_mini_batches(policy, make_rollout_batch(seed=seed), KL_COV, settings)
    run_updates(policy, updates, KL_COV, clock=StepClock())


def _scratch(folder: Path) -> Path | None:
    """Rank 0's folder for a plan."""
    if torch.distributed.get_rank() > 0:
        return None
    scratch = folder.with_name(f"{folder.name}_scratch")
    scratch.mkdir()
    return scratch


def _save(policy: Policy, folder: Path) -> None:
    if torch.distributed.get_rank() == 0:
        folder.mkdir()
    torch.distributed.barrier()
    plan = plan_save(policy.chunks, policy.optimizer, folder, scratch=_scratch(folder))
    group = make_save_group(deadline_s=60)
    save = BackgroundSave(plan, folder, group, write_more=lambda _: [], publish=lambda _: write_format(folder))
    # Training that continues must not change the files.
    _update(policy, seed=9)
    save.wait(timeout_s=60)
    assert save.is_done and save.failure is None, save.failure


def _tensors(folder: Path) -> dict[str, Tensor]:
    from megatron.core.dist_checkpointing import load_plain_tensors

    plain = load_plain_tensors(str(folder))
    # Padding rows depend on the layout.
    return {key: value[:16] if "embedding" in key or "output_layer" in key else value for key, value in plain.items()}


def _case(model: str, layout: Layout, dtype: str, grouped: bool, load: str, save: str) -> dict[str, Any]:
    """Load, or train if there is nothing to load; save; train on. Returns what is on disk, and the final weights."""
    with laid_out_ranks(
        layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, context=layout.context, expert=layout.expert
    ) as groups:
        policy = _policy(groups, model, layout, dtype, grouped)
        if load:
            load_checkpoint(policy.chunks, policy.optimizer, Path(load), adam_steps=2)
        else:
            _update(policy, seed=1)
        _save(policy, Path(save))
        weights, steps = dict(policy.hf_weights()), adam_steps(policy.optimizer)
        return {"disk": _tensors(Path(save)), "weights": weights, "steps": steps}


def _run_all(cases: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    """Rank 0's result of each case; ranks start once for each world size."""
    results: dict[int, dict[str, Any]] = {}
    for num_ranks in (1, 2, 4):
        chosen = [index for index, case in enumerate(cases) if case[1].ranks == num_ranks]
        found = run_cases(_case, [cases[index] for index in chosen], world_size=num_ranks)
        results |= {index: by_rank[0] for index, by_rank in zip(chosen, found, strict=True)}
    return [results[index] for index in range(len(cases))]


@pytest.mark.dist
def test_any_layout_loads_what_any_layout_saved(tmp_path: Path) -> None:
    saves, loads = [], []
    for kind, (name, dtype, grouped, savers, loaders) in KINDS.items():
        model = str(make_model(tmp_path / kind, name, dtype=getattr(torch, dtype)))
        for i, saver in enumerate(savers):
            saved = str(tmp_path / f"{kind}_{i}")
            saves.append((model, saver, dtype, grouped, "", saved))
            loads += [
                (len(saves) - 1, (model, loader, dtype, grouped, saved, f"{saved}_{j}"))
                for j, loader in enumerate(loaders)
            ]
    originals = _run_all(saves)
    for (index, case), again in zip(loads, _run_all([case for _, case in loads]), strict=True):
        original = originals[index]
        assert again["steps"] == original["steps"] == 4
        assert again["disk"].keys() == original["disk"].keys()
        for key, value in original["disk"].items():
            assert torch.equal(again["disk"][key], value), (case, key)
        # Two further optimizer steps agree up to rounding, which is to 8 bits in bfloat16.
        tolerance = 1e-5 if case[2] == "float32" else 4e-3
        for key, value in original["weights"].items():
            torch.testing.assert_close(again["weights"][key], value, rtol=1e-5, atol=tolerance, msg=f"{case} {key}")


def _plan_for_a_folder_that_is_gone(model: str, folder: str) -> tuple[str | None, list[float]]:
    """This rank's failure, and what ranks get from each other next."""
    with laid_out_ranks(2) as groups:
        policy = _policy(groups, model, Layout(2, tensor=2), "float32", grouped=False)
        failure = None
        try:
            plan_save(policy.chunks, policy.optimizer, Path(folder, "gone"), scratch=_scratch(Path(folder)))
        except CheckpointError as error:
            failure = str(error)
        ranks = all_gather(torch.tensor([float(torch.distributed.get_rank())]), group=groups.control)
        return failure, torch.cat(list(ranks)).tolist()


@pytest.mark.dist
def test_a_folder_that_goes_away_fails_a_save_and_mixes_up_no_collectives(tmp_path: Path) -> None:
    model = str(make_model(tmp_path / "model", "llama3"))
    ((first, second),) = run_cases(_plan_for_a_folder_that_is_gone, [(model, str(tmp_path / "folder"))], world_size=2)
    assert first[0] is not None and "gone cannot be written" in first[0] and second[0] is None
    assert first[1] == second[1] == [0.0, 1.0]


def _save_untrained(model: str, layout: Layout, dtype: str, save: str) -> None:
    with laid_out_ranks(
        layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, expert=layout.expert
    ) as groups:
        _save(_policy(groups, model, layout, dtype, grouped=False), Path(save))


def _exported(model: str, dtype: str, folder: str) -> dict[str, Tensor]:
    from megacov.megatron.model_shape import read_model_shape

    with laid_out_ranks() as groups:
        return dict(read_hf_weights(Path(folder), read_model_shape(model), dtype=dtype, groups=groups))


@pytest.mark.dist
def test_a_folder_comes_out_of_a_checkpoint_bit_for_bit(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    cases = [
        (str(make_model(tmp_path / "moe", "qwen3_moe", dtype=torch.bfloat16)), WITH_EXPERTS[1], "bfloat16"),
        (str(make_model(tmp_path / "llama", "llama3", dtype=torch.bfloat16)), Layout(2, tensor=2), "float32"),
        (str(make_model(tmp_path / "qwen2", "qwen2")), Layout(2, pipeline=2, virtual=2), "float32"),
    ]
    saves = [(*case, f"{case[0]}_saved") for case in cases]
    run_cases(_save_untrained, saves, world_size=2)
    found = run_cases(_exported, [(model, dtype, saved) for model, _, dtype, saved in saves], world_size=1)
    for (model, _, _), by_rank in zip(cases, found, strict=True):
        source = load_file(Path(model) / "model.safetensors")
        assert by_rank[0].keys() == source.keys()
        for name, value in source.items():
            assert torch.equal(by_rank[0][name].to(value.dtype), value), (model, name)


def test_parameters_are_shared_out_evenly() -> None:
    sizes = [100, 40, 30, 30, 7, 1]
    assert share_out(sizes, num_owners=2) == [0, 1, 1, 1, 0, 1]
    assert share_out(sizes, num_owners=1) == [0] * 6
