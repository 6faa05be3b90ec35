"""Attention split over context-parallel ranks equals whole attention in value and gradient, alone and in a model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor.debug import CommDebugMode

from megacov.parallel import all_reduce_sum
from megacov.parallel.zigzag import packed_zigzag_positions, sequence_lengths, zigzag_positions
from tests.support import reference
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

HEADS, HEAD_DIM = 4, 8
# In float64 only the order of sums differs; bfloat16 rounds weights, outputs and the gradients that ranks add.
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Case:
    """groups: key/value heads. ranks: size of each context-parallel group. cu_seqlens: None for a padded layout.
    rest: tokens on one rank after the last packed sequence.
    """

    ranks: tuple[tuple[int, ...], ...]
    dtype: torch.dtype = torch.float64
    groups: int = 2
    cu_seqlens: tuple[int, ...] | None = None
    rest: int = 0

    @property
    def cp_size(self) -> int:
        return len(self.ranks[0])

    def inputs(self, index: int) -> list[Tensor]:
        """Query, key, value and loss weights of the output for group `index`; equal in every process."""
        generator = torch.Generator().manual_seed(index)
        shape = (16, 2) if self.cu_seqlens is None else (self.cu_seqlens[-1] + self.rest * self.cp_size,)
        heads = (HEADS, self.groups, self.groups, HEADS)
        return [torch.randn(*shape, n, HEAD_DIM, generator=generator).to(self.dtype) for n in heads]

    def positions(self, cp_rank: int) -> Tensor:
        if self.cu_seqlens is None:
            return zigzag_positions(16, cp_rank=cp_rank, cp_size=self.cp_size)
        held = packed_zigzag_positions(self.cu_seqlens, cp_rank=cp_rank, cp_size=self.cp_size)
        return torch.cat([held, self.cu_seqlens[-1] + cp_rank * self.rest + torch.arange(self.rest)])

    def expected(self, index: int) -> list[Tensor]:
        """Output of the whole batch, and the gradients of query, key and value, in float64."""
        *inputs, weights = self.inputs(index)
        q, k, v = leaves = [x.double().requires_grad_() for x in inputs]
        if self.cu_seqlens is None:
            rows = [(q[:, b], k[:, b], v[:, b], torch.zeros(16)) for b in range(2)]
            out = torch.stack([reference.causal_attention(*row, scale=HEAD_DIM**-0.5) for row in rows], 1)
        else:
            lengths = torch.tensor(sequence_lengths(self.cu_seqlens))
            ids = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
            end = self.cu_seqlens[-1]
            out = reference.causal_attention(q[:end], k[:end], v[:end], ids, scale=HEAD_DIM**-0.5)
            out = torch.cat([out, torch.zeros_like(q[end:])])
        return [out.detach().flatten(-2), *torch.autograd.grad((out * weights).sum(), leaves)]


@dataclass(frozen=True)
class ModelCase:
    """A model on cp_size ranks a replica, reading its sequences padded or packed."""

    cp_size: int
    layout: str


def _cases(*ranks: tuple[int, ...]) -> list[Case]:
    c = len(ranks[0])
    ragged = (0, 2 * c, 2 * c, 8 * c, 12 * c)
    return [
        *(Case(ranks, groups=groups, cu_seqlens=cu) for groups in (4, 2, 1) for cu in (None, ragged)),
        *(
            Case(ranks, dtype=dtype, cu_seqlens=cu)
            for dtype in (torch.float32, torch.bfloat16)
            for cu in (None, ragged)
        ),
        Case(ranks, cu_seqlens=(0, 4 * c, 8 * c, 12 * c)),
        Case(ranks, cu_seqlens=ragged, rest=3),
    ]


CASES = [
    *_cases((0, 1, 2, 3)),
    *_cases((0, 1), (2, 3)),
    *_cases((0, 2), (1, 3))[:2],
    *_cases((0,), (1,), (2,), (3,))[:2],
]
MODEL_CASES = [ModelCase(cp_size, layout) for cp_size in (1, 2, 4) for layout in ("padded", "packed")]


def _packed_params(cu_seqlens: list[int]) -> object:
    from megatron.core.packed_seq_params import PackedSeqParams

    boundaries, longest = torch.tensor(cu_seqlens, dtype=torch.int32), max(sequence_lengths(cu_seqlens))
    return PackedSeqParams(
        qkv_format="thd",
        cu_seqlens_q=boundaries,
        cu_seqlens_kv=boundaries,
        max_seqlen_q=longest,
        max_seqlen_kv=longest,
    )


def _attend(case: Case) -> dict:
    """Run this rank's part of a whole batch through the module; every group has its own batch."""
    from megatron.core.process_groups_config import ProcessGroupCollection
    from megatron.core.transformer import TransformerConfig
    from megatron.core.transformer.enums import AttnMaskType

    from megacov.megatron.attention import SdpaCoreAttention

    created = [dist.new_group(list(ranks)) for ranks in case.ranks]
    index = next(index for index, ranks in enumerate(case.ranks) if dist.get_rank() in ranks)
    config = TransformerConfig(
        num_layers=1, hidden_size=32, num_attention_heads=HEADS, context_parallel_size=case.cp_size
    )
    collection = ProcessGroupCollection(cp=created[index])
    attention = SdpaCoreAttention(config, 1, AttnMaskType.causal, "self", 0.0, pg_collection=collection)
    positions = case.positions(created[index].rank())
    *inputs, weights = (x[positions] for x in case.inputs(index))
    leaves = [x.clone().requires_grad_() for x in inputs]
    packed = None if case.cu_seqlens is None else _packed_params(list(case.cu_seqlens))
    comm = CommDebugMode()
    with comm:
        out = attention(*leaves, None, packed_seq_params=packed)
        num_forward = comm.get_total_counts()
        (out * weights.flatten(-2)).sum().backward()
    return {
        "index": index,
        "positions": positions,
        "parts": [out.detach(), *(leaf.grad for leaf in leaves)],
        "collectives": (num_forward, comm.get_total_counts()),
        "is_unchanged": all(torch.equal(leaf, x) for leaf, x in zip(leaves, inputs, strict=True)),
    }


@contextmanager
def _model(cp_size: int) -> Iterator[torch.nn.Module]:
    """A small model with grouped queries on each cp_size ranks; its weights are the same in every layout."""
    from megacov.megatron.cpu import install

    install()
    from megatron.core import parallel_state, tensor_parallel
    from megatron.core.models.gpt import GPTModel

    from megacov.megatron.model import ModelSettings, layer_spec, transformer_config
    from megacov.megatron.model_shape import read_model_shape
    from megacov.parallel.groups import ParallelGroups
    from tests.support.policies import TINY_POLICY

    parallel_state.initialize_model_parallel(context_parallel_size=cp_size, create_gloo_process_groups=False)
    tensor_parallel.model_parallel_cuda_manual_seed(1)
    torch.manual_seed(0)
    shape = replace(read_model_shape(TINY_POLICY), num_key_value_heads=2)
    settings = ModelSettings(dtype="float32", vocab_divisible_by=1)
    config = transformer_config(shape, settings, ParallelGroups(cp=parallel_state.get_context_parallel_group()))
    try:
        yield GPTModel(
            config,
            layer_spec(config, transformer_engine=False, virtual_stage=None),
            vocab_size=16,
            max_sequence_length=64,
            position_embedding_type="rope",
            share_embeddings_and_output_weights=False,
        )
    finally:
        parallel_state.destroy_model_parallel()


def _logits_and_gradients(cp_size: int, layout: str) -> tuple[Tensor, list[Tensor]]:
    """Logits [4, 16, v] of the same ragged sequences, 0 past their ends, and the gradients of all parameters."""
    from megatron.core import parallel_state

    tokens = torch.randint(16, (4, 16), generator=torch.Generator().manual_seed(0))
    is_real = torch.arange(16) < torch.tensor([16, 8, 8, 16])[:, None]
    weights = torch.randn(4, 16, 16, generator=torch.Generator().manual_seed(1)) * is_real[..., None]
    cp_rank, packed = dist.get_rank() % cp_size, None
    if layout == "packed":
        cu_seqlens = [0, 16, 24, 32, 48]
        tokens, weights, packed = tokens[is_real][None], weights[is_real][None], _packed_params(cu_seqlens)
        positions = packed_zigzag_positions(cu_seqlens, cp_rank=cp_rank, cp_size=cp_size)
    else:
        positions = zigzag_positions(16, cp_rank=cp_rank, cp_size=cp_size)
    with _model(cp_size) as model:
        group = parallel_state.get_context_parallel_group()
        logits = model(tokens[:, positions], positions.expand(len(tokens), -1), None, packed_seq_params=packed)
        (logits * weights[:, positions]).sum().backward()
        whole = torch.zeros_like(weights)
        whole[:, positions] = logits.detach()
        whole = all_reduce_sum(whole, group=group)
        gradients = [all_reduce_sum(parameter.grad, group=group) for parameter in model.parameters()]
    by_sequence = torch.zeros(4, 16, 16)
    by_sequence[is_real] = whole[0] if layout == "packed" else whole[is_real]
    return by_sequence, gradients


def _run(case: Case | ModelCase) -> object:
    return _attend(case) if isinstance(case, Case) else _logits_and_gradients(case.cp_size, case.layout)


@pytest.fixture(scope="module")
def results() -> dict[Case | ModelCase, list]:
    """Results of all ranks, by case."""
    cases = [*CASES, *MODEL_CASES]
    return dict(zip(cases, run_cases(_run, [(case,) for case in cases], world_size=4), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_the_whole_batch(results, case):
    tolerance = TOLERANCE[case.dtype]
    for result in results[case]:
        for part, whole in zip(result["parts"], case.expected(result["index"]), strict=True):
            assert part.dtype == case.dtype
            wanted = whole[result["positions"]]
            torch.testing.assert_close(part.double(), wanted, rtol=tolerance, atol=4 * tolerance)


def test_one_collective_forward_and_one_backward_and_none_alone(results):
    for case in CASES:
        expected = (0, 0) if case.cp_size == 1 else (1, 2)
        assert {result["collectives"] for result in results[case]} == {expected}, case


def test_inputs_are_not_written_to(results):
    assert all(result["is_unchanged"] for case in CASES for result in results[case])


@pytest.mark.parametrize("case", MODEL_CASES, ids=str)
def test_a_model_has_the_same_logits_and_gradients_in_every_layout(results, case):
    logits, gradients = results[MODEL_CASES[0]][0]
    assert logits.std() > 0.1
    for found_logits, found_gradients in results[case]:
        torch.testing.assert_close(found_logits, logits, rtol=1e-5, atol=2e-6)
        for found, wanted in zip(found_gradients, gradients, strict=True):
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
