"""Memory of trainer and servers: hand-computed numbers, and properties that hold for all sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from megacov.plan import (
    Batch,
    Cluster,
    Layout,
    ModelSizes,
    TrainerSettings,
    plan_batch,
    plan_room,
    plan_server,
    plan_trainer,
    read_model_sizes,
    suggest,
    suggest_more_gpus,
)
from megacov.plan.activations import ActivationSettings, Recompute, kept_by_layer, layers_in_flight
from megacov.plan.memory import StageMemory, optimizer_bytes
from tests.unit.plan.test_batch import PAPER

MODELS = Path(__file__).parents[3] / "yaml_configs" / "models"
QWEN_32B, QWEN3_32B = (read_model_sizes(MODELS / name / "config.json") for name in ("qwen2.5-32b", "qwen3-32b"))
BF16 = TrainerSettings(
    value_bytes=2,
    recompute="none",
    fused=True,
    vocab_divisible_by=128,
    with_reference=False,
    bucket_bytes=2**29,
    saves=True,
)
GIB = 2**30
H100 = Cluster(4, 8, 80 * GIB, 4 * GIB, 1024 * GIB)


def stages(
    layout: Layout, settings: TrainerSettings = BF16, batch: Batch = PAPER, sizes: ModelSizes = QWEN_32B
) -> list[StageMemory]:
    return plan_trainer(sizes, layout, plan_batch(batch, layout), settings)


def test_a_push_from_shard_to_shard_takes_two_buckets_on_every_stage_and_no_whole_matrix() -> None:
    layout = Layout(4, True, pipeline=2, data=4)
    assert [stage.push for stage in stages(layout, replace(BF16, gathers=False))] == [2 * 2**29] * 2
    first, last = stages(layout)
    assert first.push > last.push > 2 * 2**29


def test_deferred_backwards_keep_a_whole_optimizer_step() -> None:
    batch = plan_batch(PAPER, layout := Layout(4, True, pipeline=2, data=4))
    assert batch.micro_batches > 1
    positions = batch.micro_batches * batch.positions_per_rank
    for recompute, of_a_layer, logits in (("none", None, 297 * 128), ("full", 5120 // 4, 0)):
        settings = replace(BF16, recompute=recompute, defers=True)
        first, last = stages(layout, settings)
        if of_a_layer is None:
            of_a_layer = kept_by_layer(QWEN_32B, layout, ActivationSettings(2, "none")) / 2
        # What the first stage sends; the last norm's input and output, and the logits unless they are recomputed.
        assert first.activations == int(positions * 2 * (32 * of_a_layer + 5120 // 4)), recompute
        assert last.activations == int(positions * 2 * (32 * of_a_layer + 2 * 5120 // 4 + logits)), recompute


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("pipeline", [1, 2])
def test_the_room_is_filled_by_as_many_positions_as_it_names(recompute: Recompute, pipeline: int) -> None:
    layout, usable = Layout(8, True, pipeline=pipeline, data=4), 76 * 2**30
    settings = replace(BF16, recompute=recompute)
    counted = plan_batch(PAPER, layout)
    room = plan_room(QWEN_32B, layout, counted, settings, usable_bytes=usable)
    assert room.positions > 0
    free = usable - stages(layout, replace(settings, defers=True))[room.stage].resident
    work = stages(layout, settings)[room.stage]
    free -= max(work.logits, work.layer_work)
    assert room.positions * room.position_bytes <= free < (room.positions + 1) * room.position_bytes
    # What a whole optimizer step of that many positions keeps is what `activations` says.
    deferred = stages(layout, replace(settings, defers=True))[room.stage]
    kept = counted.micro_batches * counted.positions_per_rank * room.position_bytes
    assert deferred.activations == int(kept)
    none = plan_room(QWEN_32B, layout, counted, settings, usable_bytes=work.resident)
    assert none.positions == 0


def test_qwen_32b_by_hand() -> None:
    (one,) = stages(Layout(8, True, data=4))
    matrices = 5120 * (40 + 2 * 8) * 128 // 8 + 40 * 128 * 5120 // 8 + 3 * 5120 * 27648 // 8
    of_a_layer = matrices + (40 + 2 * 8) * 128 // 8 + 2 * 5120
    rows = 149 * 128  # 152064 / 8 = 148.5 x 128, padded
    parameters = 64 * of_a_layer + 2 * rows * 5120 + 5120
    assert one.num_parameters == parameters
    assert (one.weights, one.gradients) == (2 * parameters, 4 * parameters)
    assert one.optimizer == 12 * parameters // 4
    # A position in a layer: 4 h / 8, q + 2k, q + k + 4 d, q, and 3 f, in bfloat16; two norms and 5 heads in float32.
    values = 4 * 640 + 3 * 640 + 3 * 128 + 4 * 128 + 3 * 3456
    assert one.activations == 20480 * (64 * (2 * values + 4 * (2 / 8 + 5)) + 2 * 2 * 640)
    logits = 20480 * rows * 2
    # Beside the gradient in their place, those of the output layer and of the hidden states before and behind it.
    assert one.logits == logits + (rows + 2 * 20480) * 5120 * 2
    assert one.staging == one.weights + one.optimizer
    assert one.peak == one.resident + one.training


def test_float32_weights_are_their_own_main_copy() -> None:
    assert (optimizer_bytes(2), optimizer_bytes(4)) == (12, 8)


def test_the_fullest_moment_may_be_a_save() -> None:
    (one,) = stages(Layout(8, True, data=1), replace(BF16, recompute="full"))
    assert one.peak == one.resident + one.save > one.resident + one.training
    (other,) = stages(Layout(8, True, data=1), replace(BF16, recompute="full", saves=False))
    assert (other.save, other.staging) == (0, 0)
    assert other.peak < one.peak


def test_a_reference_adds_its_weights_and_those_set_aside() -> None:
    (plain,), (more,) = stages(Layout(8, data=2)), stages(Layout(8, data=2), replace(BF16, with_reference=True))
    assert more.resident - plain.resident == plain.weights
    assert more.swap > plain.weights > plain.swap == 0


def test_a_pass_without_gradient_holds_a_chunk_of_the_logits() -> None:
    settings, batch = replace(BF16, with_reference=True), plan_batch(PAPER, Layout(2, data=2))
    positions, rows = batch.positions_per_rank, 152064 // 2
    whole, fused = (stages(Layout(2, data=2), replace(settings, fused_output=name))[0] for name in ("off", "on"))
    assert whole.swap - fused.swap == 2 * (positions * rows - 1024 * rows - 2 * positions * 5120)
    assert whole.training == fused.training
    assert stages(Layout(2, data=2), settings)[0].swap == fused.swap
    by_default, of_four = (stages(Layout(4), replace(settings, fused_output=name))[0] for name in ("auto", "off"))
    assert by_default.swap == of_four.swap


@pytest.mark.parametrize("sizes", [QWEN_32B, QWEN3_32B], ids=["qwen2", "qwen3"])
@pytest.mark.parametrize("settings", [BF16, replace(BF16, recompute="full"), replace(BF16, value_bytes=4)])
def test_more_ranks_never_need_more(sizes: ModelSizes, settings: TrainerSettings) -> None:
    def fullest(layout: Layout, name: str) -> float:
        return max(getattr(stage, name) for stage in stages(layout, settings, sizes=sizes))

    for name in ("weights", "gradients", "optimizer", "activations", "logits"):
        by_tensor = [fullest(Layout(tensor, True), name) for tensor in (1, 2, 4, 8)]
        assert by_tensor == sorted(by_tensor, reverse=True), name
        by_data = [fullest(Layout(8, True, data=data), name) for data in (1, 2, 4, 8)]
        assert by_data == sorted(by_data, reverse=True), name
        by_context = [fullest(Layout(8, True, context=context), name) for context in (1, 2, 4)]
        assert by_context == sorted(by_context, reverse=True), name
    for name in ("weights", "gradients", "optimizer"):
        by_pipeline = [fullest(Layout(8, True, pipeline), name) for pipeline in (1, 2, 4, 8)]
        assert by_pipeline == sorted(by_pipeline, reverse=True), name


def test_optimizer_state_over_all_ranks_is_that_of_the_model() -> None:
    whole = sum(stage.optimizer for stage in stages(Layout(pipeline=2)))
    for layout in (Layout(pipeline=2, data=4), Layout(pipeline=2, context=2, data=2)):
        of_all = sum(stage.optimizer for stage in stages(layout)) * layout.ranks_per_stage
        assert of_all == pytest.approx(whole, rel=1e-6)


def test_recomputation_keeps_less() -> None:
    kept = [
        kept_by_layer(QWEN_32B, Layout(8, True), ActivationSettings(2, recompute))
        for recompute in ("none", "selective", "full")
    ]
    assert kept == sorted(kept, reverse=True)
    assert kept[-1] == 2 * 5120 / 8


def test_stages_hold_what_their_backward_passes_wait_for() -> None:
    held = [layers_in_flight(Layout(pipeline=4), num_layers=64, stage=stage, micro_batches=8) for stage in range(4)]
    assert held == [64, 48, 32, 16]
    assert layers_in_flight(Layout(pipeline=4), num_layers=64, stage=0, micro_batches=2) == 32
    # Korthikanti et al.: interleaving holds 1 + (p - 1) / (p m) times the layers of the first stage.
    virtual = Layout(pipeline=4, virtual_pipeline=2)
    assert layers_in_flight(virtual, num_layers=64, stage=0, micro_batches=8) == 64 * (1 + 3 / 8)


def test_logits_are_on_the_last_stage_alone() -> None:
    first, last = stages(Layout(4, True, 2))
    assert first.logits == 0 < last.logits
    assert first.activations > last.activations


def test_a_server_of_two_gpus_by_hand() -> None:
    server = plan_server(QWEN_32B, tensor=2, gpu_bytes=80 * GIB, static_fraction=0.85, value_bytes=2, longest=10240)
    assert server.token_bytes == 2 * 64 * 4 * 128 * 2
    assert server.weights == pytest.approx(32.76e9, rel=1e-3)
    assert server.weights + server.key_value + server.rest == 80 * GIB
    assert server.rest == pytest.approx(12 * GIB, rel=1e-6)
    assert server.tokens == server.key_value // server.token_bytes
    assert server.sequences == server.tokens // 10240 == 29


def test_key_heads_are_repeated_where_ranks_outnumber_them() -> None:
    def of(tensor: int) -> int:
        return plan_server(
            QWEN_32B, tensor=tensor, gpu_bytes=80 * GIB, static_fraction=0.8, value_bytes=2, longest=1
        ).token_bytes

    assert of(4) == 2 * of(8) == 2 * of(16) // 1


def test_a_server_that_is_too_small_holds_nothing() -> None:
    server = plan_server(QWEN_32B, tensor=1, gpu_bytes=40 * GIB, static_fraction=0.8, value_bytes=2, longest=10)
    assert server.key_value < 0 == server.tokens == server.sequences


def why_not_h100(layout: Layout, recompute: Recompute, tokens: int, stages: Sequence[StageMemory]) -> str | None:
    return None if max(stage.peak for stage in stages) <= H100.usable_bytes else "too large"


def test_suggestions_fit_use_all_gpus_and_come_fastest_first() -> None:
    asked = Layout(2, data=16)
    found = suggest(QWEN_32B, asked, PAPER, BF16, H100, why_not=why_not_h100).fitting
    assert len(found) > 5
    for one in found:
        batch = replace(PAPER, micro_batch_tokens=one.micro_batch_tokens)
        again = stages(one.layout, replace(BF16, recompute=one.recompute), batch)
        assert one.layout.world_size == asked.world_size
        assert max(stage.peak for stage in again) == one.peak <= H100.usable_bytes
        assert one.layout.tensor <= 8
    fastest = found[0].seconds
    relative = [round(one.seconds / fastest, 2) for one in found]
    assert relative == sorted(relative)


def test_where_nothing_fits_the_layout_that_needs_least_is_nearest_and_more_gpus_are_searched() -> None:
    search = suggest(QWEN_32B, Layout(2), PAPER, BF16, H100, why_not=why_not_h100)
    assert search.fitting == [] and search.nearest is not None and search.nearest.why_not == "too large"
    layouts = [Layout(2, True), Layout(pipeline=2), Layout(context=2), Layout(data=2)]
    peaks = [max(stage.peak for stage in stages(each, BF16, PAPER)) for each in layouts]
    assert H100.usable_bytes < search.nearest.peak <= min(peaks)
    more = suggest_more_gpus(QWEN_32B, Layout(2), PAPER, BF16, H100, why_not=why_not_h100)
    assert more is not None and more.fitting and more.nearest is None
    fewer = Layout(data=more.world_size - H100.gpus_per_node)
    assert suggest(QWEN_32B, fewer, PAPER, BF16, H100, why_not=why_not_h100).fitting == []
    assert suggest_more_gpus(QWEN_32B, Layout(2), PAPER, BF16, H100, why_not=lambda *_: "never") is None
