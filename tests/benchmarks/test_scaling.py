"""The simulation of a step keeps its books: phases add up, nothing beats the hardware, more of it never hurts."""

from __future__ import annotations

from dataclasses import astuple, replace
from pathlib import Path

import pytest

from benchmarks.scaling import (
    RUN,
    SIZES,
    assumptions_report,
    phases,
    selection_report,
    strong,
    strong_report,
    weak,
    weak_report,
)
from benchmarks.scaling_assumptions import Assumptions, Lengths, Shares
from benchmarks.scaling_figure import write_figure
from benchmarks.scaling_published import QWEN_27B, compare, miles, simulate
from benchmarks.scaling_rollout import Servers, response_lengths, simulate_rollout
from benchmarks.scaling_selection import fastest, work_of
from benchmarks.scaling_step import push_seconds, read_run, shared_steps, trainings
from benchmarks.scaling_trainer import Training, bubble_share, count_passes, deal, defers, train_seconds
from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import balance, cut
from megacov.plan import Layout

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
GIVEN = Assumptions()
FASTER = {
    ("gpu", "flops"): 2,
    ("gpu", "memory"): 2,
    ("gpu", "nvlink"): 2,
    ("gpu", "network"): 2,
    ("gpu", "host"): 2,
    ("shares", "training"): 1.5,
    ("shares", "decoding"): 1.5,
    ("costs", "hop"): 0.5,
    ("costs", "server_step"): 0.5,
    ("costs", "request"): 0.5,
    ("costs", "micro_batch"): 0.5,
}


@pytest.fixture(scope="module")
def run():
    return read_run(RUN, GIVEN)


@pytest.fixture(scope="module")
def steps(run):
    return strong(run)


def changed(group: str, name: str, factor: float) -> Assumptions:
    part = getattr(GIVEN, group)
    return replace(GIVEN, **{group: replace(part, **{name: getattr(part, name) * factor})})


def test_the_page_shows_what_is_printed(run, steps):
    page = PAGE.read_text()
    for part in (strong_report(run, steps), selection_report(run), assumptions_report(GIVEN)):
        for block in part.split("\n\n"):
            assert block in page


@pytest.mark.slow
def test_the_page_shows_what_is_printed_of_a_batch_that_grows(run):
    assert weak_report(weak(run)) in PAGE.read_text()


def test_phases_add_up_to_the_step_and_gpus_to_the_job(steps):
    for step in (step for of_mode in steps.values() for step in of_mode):
        assert sum(phases(step).values()) == pytest.approx(step.seconds)
        assert min(phases(step).values()) >= 0
        server_gpus = step.servers.number * step.servers.tensor
        apart = step.mode != "colocated"
        assert step.gpus == step.trainer_gpus + (server_gpus if apart else 0)
        assert step.trainer_gpus == step.training.layout.world_size
        assert step.mode == "one step off" or step.waited == step.rollout.seconds
        # A batch is sampled once a step.
        assert step.seconds >= step.rollout.seconds


def test_nothing_beats_the_hardware(run, steps):
    model, gpu = run.model, GIVEN.gpu
    tokens, squares = sum(run.sequences), sum(n * n for n in run.sequences)
    forward = model.forward_flops(tokens, squares)
    for step in (step for of_mode in steps.values() for step in of_mode):
        on_peak = forward / (step.trainer_gpus * gpu.flops)
        assert step.trainer.log_probs >= on_peak
        assert step.trainer.update >= 3 * on_peak
        if not defers(step.training, work_of(run, step.training)):
            assert step.trainer.selection >= 7 / 8 * on_peak
        assert step.rollout.decode >= step.rollout.floor > 0
        # The longest response is written token by token, and each reads all weights.
        weights = model.weight_bytes / step.servers.tensor / gpu.memory
        assert step.rollout.seconds >= run.responses[0] * weights
        # Somebody receives every weight by a link or a port.
        assert step.sync >= model.weight_bytes / gpu.nvlink
        ranks, cuts = step.training.layout.optimizer_shards, step.training.layout.tensor * step.training.layout.pipeline
        moved = 8 * 6 * model.parameters / cuts * (1 - 1 / ranks)
        assert step.trainer.data_parallel >= moved / gpu.network


def test_deferred_backwards_cost_no_forward_and_are_chosen_where_that_is_fastest(run):
    seconds, training = fastest(run, 32, lambda one: defers(one, work_of(run, one)))
    work = work_of(run, training)
    assert training.recompute == "full" and work.tokens <= training.room
    less = train_seconds(run.model, GIVEN, replace(training, room=work.tokens - 1), run.sequences[::8])
    assert less.selection == pytest.approx(7 / 8 * less.log_probs, rel=1e-3)
    assert (less.update, less.log_probs) == (seconds.update, seconds.log_probs)
    assert seconds.selection < 0.04 * seconds.total and seconds.total < less.total
    # The fastest of all recomputes nothing, and makes a pass.
    best, chosen = fastest(run, 32, lambda _: True)
    assert best.total < seconds.total and not defers(chosen, work_of(run, chosen))


def test_a_correction_is_a_forward_and_a_backward_over_its_share(run):
    lengths = run.sequences[:: run.plan.batch.updates]
    for recompute, forwards in (("none", 3), ("full", 4)):
        suits = [one for one in trainings(replace(run, may_defer=False), 32) if one.recompute == recompute]
        passed, corrected = (
            train_seconds(run.model, GIVEN, replace(suits[0], corrected_share=share), lengths) for share in (None, 0.1)
        )
        assert corrected.selection == pytest.approx(0.1 * forwards * passed.selection, rel=1e-3)
        assert (corrected.update, corrected.log_probs) == (passed.update, passed.log_probs)
        assert corrected.head < passed.head and corrected.bubble >= passed.bubble


@pytest.mark.parametrize(("which", "factor"), FASTER.items(), ids=[".".join(which) for which in FASTER])
def test_more_of_anything_never_hurts(run, which, factor):
    better = changed(*which, factor)
    training = next(one for one in trainings(run, 64) if one.layout == Layout(4, True, 2, 1, 2, 1, 4))
    lengths = run.sequences[::8]
    before, after = (train_seconds(run.model, given, training, lengths) for given in (GIVEN, better))
    assert all(new <= old for new, old in zip(astuple(after), astuple(before), strict=True))
    servers = Servers(8, 4, run.static_fraction * GIVEN.gpu.capacity)
    old, new = (simulate_rollout(run.model, given, servers, run.responses, samples=8) for given in (GIVEN, better))
    assert new.seconds <= old.seconds
    many = replace(servers, number=64)
    pushes = [push_seconds(run.model, one, training.layout, many, colocated=False) for one in (GIVEN, better)]
    assert pushes[1] <= pushes[0]
    assert astuple(after) != astuple(before) or new.seconds < old.seconds or pushes[1] < pushes[0]


def schedule(stages: int, passes: int, forward: float, backward: float) -> float:
    """The end of a 1F1B schedule, pass by pass: each stage waits for its neighbour; without backward, 0."""
    orders = []
    for stage in range(stages):
        ahead = min(stages - stage - 1, passes) if backward else passes
        order = [("f", i) for i in range(ahead)]
        for i in range(passes - ahead):
            order += [("f", ahead + i), ("b", i)]
        orders.append(order + [("b", i) for i in range(passes - ahead, passes) if backward])
    ends: dict[tuple[str, int, int], float] = {}
    clocks = [0.0] * stages
    while any(orders):
        for stage, order in enumerate(orders):
            if not order:
                continue
            kind, i = order[0]
            neighbour = stage - 1 if kind == "f" else stage + 1
            if 0 <= neighbour < stages and (kind, i, neighbour) not in ends:
                continue
            ready = ends.get((kind, i, neighbour), 0.0)
            clocks[stage] = max(clocks[stage], ready) + (forward if kind == "f" else backward)
            ends[kind, i, stage] = clocks[stage]
            order.pop(0)
    return max(clocks)


@pytest.mark.parametrize("stages", [1, 2, 4])
@pytest.mark.parametrize("passes", [4, 5, 12])
@pytest.mark.parametrize("backward", [0.0, 1.0, 2.0])
def test_the_bubble_is_that_of_the_schedule(stages, passes, backward):
    busy = passes * (1 + backward)
    share = bubble_share(Layout(pipeline=stages), passes)
    assert schedule(stages, passes, 1.0, backward) == pytest.approx(busy * (1 + share))


@pytest.mark.parametrize("data", [1, 3, 8, 40])
@pytest.mark.parametrize("limit", [3000, 8192, 10240])
def test_sequences_are_dealt_out_as_megacov_deals_them(run, data, limit):
    lengths = run.sequences[::16]
    parts = balance(lengths, num_parts=data)
    assert deal(lengths, data) == [[lengths[i] for i in part] for part in parts]
    own = [lengths[i] for i in parts[0]]
    assert count_passes(own, limit) == len(cut(own, micro_batch_tokens=limit, layout=SequenceLayout(packed=True)))


@pytest.mark.parametrize("mean", [500, 1000, 4000, 6000])
def test_lengths_have_the_mean_that_is_asked_for(mean):
    responses = response_lengths(Lengths(mean=mean), number=2048, longest=8192)
    assert list(responses) == sorted(responses, reverse=True)
    assert responses[-1] >= 1 and responses[0] == 8192
    assert sum(responses) / 2048 == pytest.approx(mean, rel=1e-3)


def test_the_spread_is_what_miles_published():
    responses = response_lengths(Lengths(mean=4585), number=2048, longest=8192)
    assert sum(n == 8192 for n in responses) / 2048 == pytest.approx(0.33, abs=0.01)


def test_decoding_of_equal_lengths_is_a_product(run):
    servers, given = Servers(1, 4, 80e9), replace(GIVEN, lengths=Lengths(prompt=0))
    one = simulate_rollout(run.model, given, servers, (1000,), samples=1)
    weights = run.model.weight_bytes / 4 / (given.gpu.memory * given.shares.decoding)
    assert one.decode > 1000 * (weights + given.costs.server_step)
    # Sequences that fit begin at once; with one more, a second wave begins when the first ends.
    room = int((80e9 - run.model.weight_bytes / 4) // (1000 * run.model.token_bytes / 4))
    full, over = (simulate_rollout(run.model, given, servers, (1000,) * n, samples=1) for n in (room, room + 1))
    assert full.waves == 1
    assert over.waves > 1
    assert over.decode == pytest.approx(full.decode + one.decode)


def test_a_sequence_begins_when_its_keys_fit_beside_those_that_are_left(run):
    given = replace(GIVEN, lengths=Lengths(prompt=0))
    weights, token = run.model.weight_bytes / 4, run.model.token_bytes / 4
    room = Servers(1, 4, weights + 1500.5 * token)
    one = simulate_rollout(run.model, given, room, (1000,), samples=1)
    # The long one with a short one, with the next, and the last alone.
    four = simulate_rollout(run.model, given, room, (1000, 500, 500, 500), samples=1)
    assert four.decode == pytest.approx(1.5 * one.decode, rel=0.02)
    assert four.waves == 2


def test_a_server_whose_memory_holds_no_sequence_is_never_chosen(run):
    rollout = simulate_rollout(run.model, GIVEN, Servers(1, 1, 60e9), run.responses, samples=8)
    assert rollout.seconds == float("inf")


def test_every_layout_that_is_tried_fits_into_memory(run, steps):
    for step in steps["in turn"]:
        assert step.training in list(trainings(run, step.trainer_gpus))
    assert list(trainings(run, 8)) == []


@pytest.mark.parametrize("path", sorted(RUN.parent.glob("qwen*_kl_cov_*.yaml")), ids=lambda path: path.stem)
def test_a_ready_run_can_finish_a_step_and_save_in_its_grace(path):
    run = read_run(path, GIVEN)
    plan, batch = run.plan, run.plan.batch
    long = replace(run, given=replace(GIVEN, lengths=replace(GIVEN.lengths, mean=batch.max_response_length / 2)))
    staging = max(stage.staging for stage in plan.stages)
    training = Training(
        plan.layout, plan.settings.recompute, batch.micro_batch_tokens, batch.updates, run.selects, 0, 0.0, 1, staging
    )
    seconds = train_seconds(run.model, GIVEN, training, long.sequences[:: batch.updates]).total
    assert seconds < 0.75 * plan.config.checkpoint.grace_s


def test_one_step_off_is_never_slower_and_the_split_is_the_best(run):
    both = shared_steps(run, 32)
    assert both["one step off"].seconds <= both["in turn"].seconds


def test_two_efficiencies_are_fitted_and_the_rest_is_not(run):
    rows = list(compare(GIVEN))
    assert [one.role for one in rows].count("fitted") == 2
    for one in rows:
        if one.role == "fitted":
            assert one.ratio == pytest.approx(1, abs=0.01)
    # Each of the two is found by its own time.
    other = replace(GIVEN, shares=replace(Shares(), decoding=0.5))
    assert simulate(miles(), other)[2] == simulate(miles(), GIVEN)[2]


def test_the_model_of_miles_keeps_what_its_page_says():
    # 0.8 of the memory holds 53 GB of weights, 198 states, and 517,999 tokens of keys and values, to a fifth.
    room = 0.8 * 141e9 - QWEN_27B.weight_bytes - 198 * QWEN_27B.state_bytes
    assert room / QWEN_27B.token_bytes == pytest.approx(517_999, rel=0.2)


def test_the_figure_is_written(steps, tmp_path):
    path = tmp_path / "new" / "scaling.png"
    write_figure({"in turn": {step.gpus: phases(step) for step in steps["in turn"]}}, path=path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert len((PAGE.parent / "figures" / "scaling.png").read_bytes()) < 150_000
    assert [step.gpus for step in steps["in turn"]] == list(SIZES)
