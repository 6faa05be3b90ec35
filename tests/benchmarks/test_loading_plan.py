"""A rank that loads a model holds as much as planned: its shard, its gradients, and one parameter beside them."""

from __future__ import annotations

import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.loading_plan import RankPlan, plan_loading
from megacov.megatron.families.layout import Layout as WeightLayout
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import read_model_shape
from tests.distributed.test_families import Layout
from tests.support.families import make_model
from tests.support.policies import FLOAT32, laid_out_ranks, make_policy
from tests.support.run_ranks import run_cases

CASES = {
    "llama3": [Layout(2), Layout(1, 2, 2)],
    "qwen2_yarn": [Layout(2), Layout(1, 2)],
    "qwen3_moe": [Layout(expert=2), Layout(2, expert=2, sequence=True)],
}


class LiveBytes:
    """Bytes of the tensors that two functions have returned and that are still alive; each tensor counts once."""

    def __init__(self) -> None:
        self.most = 0
        self._alive: dict[int, int] = {}

    def count(self, tensor: Tensor) -> Tensor:
        if id(tensor) not in self._alive:
            self._alive[id(tensor)] = tensor.nbytes
            weakref.finalize(tensor, self._alive.pop, id(tensor))
        self.most = max(self.most, sum(self._alive.values()))
        return tensor


def load(folder: str, layout: Layout) -> dict[str, int]:
    """Bytes that this rank holds after loading, and most bytes of read tensors while it loads."""
    live, read, shard = LiveBytes(), HfFolder.read, WeightLayout.shard
    patched: tuple[tuple[Any, str, Any], ...] = ((HfFolder, "read", read), (WeightLayout, "shard", shard))
    try:
        for owner, name, original in patched:
            setattr(owner, name, lambda *args, _original=original, **options: live.count(_original(*args, **options)))
        with laid_out_ranks(
            layout.tensor, layout.pipeline, virtual_pipeline=layout.virtual, expert=layout.expert
        ) as groups:
            model = replace(FLOAT32, virtual_pipeline=layout.virtual, sequence_parallel=layout.sequence)
            policy = make_policy(groups, path=Path(folder), model=model)
            parameters = [parameter for chunk in policy.chunks for parameter in chunk.parameters()]
            return {
                "stage": groups.pp_rank,
                "tensor_rank": groups.tp_rank,
                "weights": sum(parameter.nbytes for parameter in parameters),
                "gradients": sum(parameter.main_grad.nbytes for parameter in parameters),
                "reading": live.most,
            }
    finally:
        for owner, name, original in patched:
            setattr(owner, name, original)


def plan(folder: Path, layout: Layout) -> dict[tuple[int, int], RankPlan]:
    plans = plan_loading(
        read_model_shape(folder),
        tensor=layout.tensor,
        pipeline=layout.pipeline,
        virtual_pipeline=layout.virtual,
        expert=layout.expert,
        vocab_divisible_by=FLOAT32.vocab_divisible_by,
        dtype=torch.float32,
    )
    return {(one.stage, one.tensor_rank): one for one in plans}


@pytest.mark.dist
def test_ranks_hold_what_was_planned(tmp_path: Path) -> None:
    folders = {name: make_model(tmp_path / name, name) for name in CASES}
    keys = [(name, layout) for name, layouts in CASES.items() for layout in layouts]
    found = run_cases(load, [(str(folders[name]), layout) for name, layout in keys], world_size=2)
    for (name, layout), by_rank in zip(keys, found, strict=True):
        plans = plan(folders[name], layout)
        for rank in by_rank:
            planned = plans[rank["stage"], rank["tensor_rank"]]
            held = (planned.weight_bytes, planned.gradient_bytes, planned.reading_bytes)
            assert (rank["weights"], rank["gradients"], rank["reading"]) == held, (name, layout)


@pytest.mark.parametrize("tied", [False, True])
def test_a_plan_counts_every_parameter_once_and_a_tied_embedding_on_both_ends(tmp_path: Path, tied: bool) -> None:
    folder = make_model(tmp_path, "qwen3_moe", tie_word_embeddings=tied)
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    whole = sum(tensor.numel() for tensor in tensors.values())
    padding = 2 * (18 - 16) * 32  # two vocabularies are padded from 16 to 18 tokens
    assert plan(folder, Layout())[0, 0].num_parameters == whole + (padding // 2 if tied else padding)
    both = sum(one.num_parameters for one in plan(folder, Layout(pipeline=2)).values())
    assert both == whole + padding + (16 * 32 if tied else 0)
    experts = sum(tensor.numel() for name, tensor in tensors.items() if ".experts." in name)
    shared_out = plan(folder, Layout(expert=4))[0, 0].num_parameters
    assert plan(folder, Layout())[0, 0].num_parameters - shared_out == experts * 3 // 4


def test_a_rank_reads_less_than_a_layer_at_once(tmp_path: Path) -> None:
    for name in CASES:
        folder = make_model(tmp_path / name, name)
        (one,) = plan(folder, Layout()).values()
        (of_layers,) = plan(make_model(tmp_path / f"{name}_5", name, num_hidden_layers=5), Layout()).values()
        assert one.reading_bytes < 2 * (of_layers.weight_bytes - one.weight_bytes)
