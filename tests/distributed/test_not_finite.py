"""A NaN on one rank: all ranks leave the optimizer step out or stop, with an error that names the samples."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.families import make_model
from tests.support.not_finite_cases import LAYOUTS, SIZES, one_of_them
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist

LEFT_OUT = [
    ("DP2", "grpo", 0, "policy_advantages"),
    ("CP2", "grpo", 3, "policy_advantages"),
    ("DP2", "kl_cov", 1, "advantages"),
    ("CP2", "kl_cov", 1, "advantages"),
    ("DP2", "kl_cov", 2, "old_log_probs"),
    ("DP2", "kl_cov", 0, "ref_log_probs"),
    ("DP2", "clip_cov", 0, "advantages"),
    ("DP2", "old", 3, "old_log_probs"),
    ("CP2", "micro_batch", 1, "advantages"),
    ("TP2 PP2", "kl_cov", 1, "advantages"),
    ("DP2 PP2", "kl_cov", 1, "advantages"),
    ("DP2 PP2", "deferred", 1, "advantages"),
    ("DP2 PP2", "correction", 1, "advantages"),
]
STOPPED = [("DP2", "grpo"), ("CP2", "kl_cov"), ("TP2 PP2", "kl_cov"), ("DP2 PP2", "grpo")]
MEASURED = [
    ("kl_cov", (1,), "policy_advantages"),
    ("kl_cov", (3,), "old_log_probs"),
    ("kl_cov", (0, 1, 2, 3), "policy_advantages"),
    ("clip_cov", (3,), "advantages"),
    ("rollout_batch", (2,), "old_log_probs"),
    ("grpo", (0,), "policy_advantages"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder for the reports of stopped runs."""
    folder = tmp_path_factory.mktemp("reports")
    for name in SIZES:
        (folder / name).mkdir()
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[tuple[Any, ...], list[Any]]:
    """Results of all ranks, by name and first argument or arguments of the case."""
    found: dict[tuple[Any, ...], list[Any]] = {}
    for world_size, layouts in LAYOUTS.items():
        cases = {("left_out", *case): (layouts[case[0]], *case[1:]) for case in LEFT_OUT if case[0] in layouts}
        for name, algorithm in STOPPED:
            if name in layouts:
                cases["stopped", name] = (layouts[name], algorithm, "policy_advantages", str(folder / name))
        cases |= {("in_backward", name): (sizes,) for name, sizes in layouts.items()}
        if world_size == 2:
            experts = make_model(folder / "experts", "qwen3_moe")
            cases["experts",] = (layouts["DP2"], "kl_cov", 1, "advantages", str(experts))
            cases |= {("measured", *case): case for case in MEASURED}
            cases["spoiled_policy",] = ()
        by_case = run_cases(
            one_of_them,
            [("left_out" if key[0] == "experts" else key[0], *case) for key, case in cases.items()],
            world_size=world_size,
        )
        found |= dict(zip(cases, by_case, strict=True))
    return found


@pytest.mark.parametrize("case", LEFT_OUT, ids=lambda case: "-".join(map(str, case)))
def test_all_ranks_leave_it_out_and_go_on_as_if_it_had_not_been(results, case):
    check_left_out(results["left_out", *case], position=case[2])


def test_ranks_that_share_experts_leave_it_out_too(results):
    check_left_out(results["experts",], position=1)


def check_left_out(by_rank: list[dict[str, Any]], *, position: int) -> None:
    """Check that every rank left out the optimizer step at a position and is in the state it would have without it."""
    for found in by_rank:
        assert found["applied"] == [i != position for i in range(4)]
        assert found["in_a_row"] == (1 if position == 3 else 0)
        assert math.isnan(found["grad_norm"])
        assert found["same_weights"]
        assert found["moved"], "nothing was trained"
        assert found["same_rates"]
        applied, moved, gradients_left = found["alone"]
        assert (applied, moved) == ([False], False)
        assert gradients_left == {0.0}


@pytest.mark.parametrize("name", [name for name, _ in STOPPED])
def test_past_the_bound_all_ranks_stop_with_one_sentence(results, folder, name):
    by_rank = results["stopped", name]
    samples, last = by_rank[-1]["samples"], len(by_rank) - 1
    file = folder / name / "not_finite_step_000007.json"
    first, second = json.loads(file.read_text())
    (micro_batch,) = (f["micro_batch"] for report in second["ranks"] for f in report["findings"])
    assert {found["sentence"] for found in by_rank} == {
        f"step 7, update 2 was left out on all ranks: values of sample {samples[1]} in micro-batch {micro_batch} of "
        f"rank {last} are not finite (gradient norm nan); 2 in a row, and optimizer.max_skipped_updates is 1: "
        f"look at {file}, or lower optimizer.lr."
    }
    assert not any(found["moved"] for found in by_rank)
    assert {found["in_a_row"] for found in by_rank} == {2}
    assert (first["step"], first["update"], first["in_a_row"], second["update"]) == (7, 1, 1, 2)
    assert [entry["id"] for entry in second["samples"]] == samples[1:]
    assert second["samples"][0]["token_ids"]
    assert [told["rank"] for told in first["ranks"] if told["findings"]] == [last]


@pytest.mark.parametrize(
    # The last rank's NaN reaches upstream stages and its tensor-parallel peers.
    ("name", "expected"),
    [("DP2", "rank 1"), ("CP2", None), ("TP2 PP2", "ranks 0, 1, 2 and 3"), ("DP2 PP2", "ranks 1 and 3")],
)
def test_an_overflow_in_the_backward_pass_names_the_rank(results, name, expected):
    by_rank = results["in_backward", name]
    (sentence,) = {found["sentence"] for found in by_rank}
    # Context-parallel ranks of one sequence send each other gradients too.
    named = expected or "ranks 0 and 1"
    assert f"every loss is finite, but the gradient is not on {named} (" in sentence
    assert not any(found["moved"] for found in by_rank)
    assert all(found["then"] == [True] for found in by_rank), "a later update suffers"


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: "-".join(map(str, case)))
def test_metrics_are_finite_or_absent(results, case):
    algorithm, which, field = case
    for metrics, expected in results["measured", *case]:
        assert all(map(math.isfinite, metrics.values()))
        skipped = 4 if algorithm == "rollout_batch" else len(which)
        assert metrics["health/skipped_updates"] == skipped
        assert ("policy/grad_norm" in metrics) == ("policy/ratio" in metrics) == (skipped < 4)
        assert metrics.get("policy/grad_norm", 0.0) == pytest.approx(expected["norm"])
        assert ("selection/count" in metrics) == (algorithm != "grpo" and skipped < 4)
        # Metrics of the whole rollout batch are present if they are finite.
        assert "entropy/token_mean" in metrics
        assert ("cov/mean" in metrics) == (field == "policy_advantages") == bool(expected["histogram"])


def test_a_policy_that_is_nan_stops_the_run_and_names_few_samples(results):
    (sentence,) = {found["sentence"] for found in results["spoiled_policy",]}
    assert "4 in a row, and optimizer.max_skipped_updates is 3" in sentence
    assert "values of samples 0, 1, 2, 4, 5 and 10 more in micro-batch 0 of ranks 0 and 1 are not finite" in sentence
