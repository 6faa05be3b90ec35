"""A real model, split over ranks, has the same logits as in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from megacov.data.micro_batch import SequenceLayout, make_micro_batch
from megacov.megatron.forward_step import forward_only
from megacov.megatron.model import ModelSettings, build_model
from megacov.megatron.model_shape import check_split, read_model_shape
from megacov.megatron.weights import check_hf_weights, load_hf_weights
from megacov.parallel import all_gather
from megacov.types import RolloutBatch
from tests.support.policies import laid_out_ranks
from tests.support.run_ranks import run_cases
from tests.support.smollm2 import fetch

# Its 3 key-value heads allow no other tensor-parallel size.
LAYOUTS = {2: (1, 2, 3), 3: (3, 1, 1)}
# Relative to the largest logit. Measured: 2e-6 under tensor parallelism, which sums in another order, and 0 without.
TOLERANCE = 1e-5


class LogitsKeeper:
    """Stands in for the reader of log-probs and returns the logits."""

    temperature = 1.0

    def read(self, logits: Tensor, *args: Any, **options: Any) -> tuple[Tensor, Tensor]:
        return logits.clone(), logits.new_zeros(())


def _as_batch(sentences: list[list[int]]) -> RolloutBatch:
    lengths = torch.tensor([len(ids) for ids in sentences])
    tokens = torch.zeros(len(sentences), int(lengths.max()), dtype=torch.int64)
    for row, ids in zip(tokens, sentences, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    mask = torch.arange(tokens.shape[1] - 1) < (lengths - 1)[:, None]
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=torch.ones_like(lengths),
        response_lengths=lengths - 1,
        loss_mask=mask,
        rollout_log_probs=torch.zeros(mask.shape),
        group_ids=torch.zeros_like(lengths),
        rewards=torch.zeros(len(sentences)),
        max_response_length=mask.shape[1],
    )


def logits(folder: str, sentences: list[list[int]], tensor: int, pipeline: int, virtual: int) -> list[Tensor]:
    """Logits at each token of each sentence but the last, on the last stage."""
    shape = read_model_shape(folder)
    check_split(shape, tensor=tensor, pipeline=pipeline, virtual_pipeline=virtual)
    check_hf_weights(folder, shape)
    settings = ModelSettings("float32", 128, transformer_engine="off", virtual_pipeline=virtual)
    with laid_out_ranks(tensor, pipeline, virtual_pipeline=virtual) as groups:
        chunks = build_model(shape, settings, groups, transformer_engine=False)
        load_hf_weights(chunks, folder, shape, groups)
        batch = _as_batch(sentences)
        micro_batches = [make_micro_batch(batch, [i], SequenceLayout()) for i in range(len(sentences))]
        reader: Any = LogitsKeeper()
        found = forward_only(chunks, micro_batches, reader, with_entropy_t1=False)
        shards = [all_gather(statistics.log_probs[0], group=groups.tp) for statistics in found]
    return [torch.cat(list(parts), dim=-1)[:, : shape.vocab_size] for parts in shards]


@pytest.mark.dist
@pytest.mark.slow
def test_smollm2_has_the_logits_of_transformers(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    reason = fetch(tmp_path)
    if reason is not None:
        pytest.skip(f"SmolLM2 cannot be had here: {reason}")
    sentences = json.loads((tmp_path / "ids.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    with torch.no_grad():
        expected = [model(torch.tensor([ids])).logits[0, :-1] for ids in sentences]
    del model
    for ids, wanted in zip(sentences, expected, strict=True):
        # A uniform guess among its tokens would give -10.8 nats: this model has learned language.
        assert wanted.log_softmax(-1).gather(-1, torch.tensor(ids[1:])[:, None]).mean() > -5
    for world_size, layout in LAYOUTS.items():
        (by_rank,) = run_cases(logits, [(str(tmp_path / "model"), sentences, *layout)], world_size=world_size)
        for found, wanted in zip(by_rank[-1], expected, strict=True):
            difference = float((found - wanted).abs().max() / wanted.abs().max())
            print(f"{world_size} ranks, {len(wanted)} tokens: {difference:.1e} of {float(wanted.abs().max()):.1f}")
            assert difference < TOLERANCE
            assert torch.equal(found.argmax(-1), wanted.argmax(-1))
