"""The positions that an optimizer step may keep: what a plan says of a rank's memory, agreed by all ranks."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from megacov.cli.selection_plan import kept_positions
from megacov.config import RunConfig, load_config
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.algorithm import build_algorithm
from megacov.trainer.kept_positions import CPU_SHARE, agree_on_kept_positions
from megacov.trainer.peak_memory import peak_bytes, restart_peak

TINY = "yaml_configs/runs/tiny_kl_cov.yaml"
UPDATES = "batch.updates_per_rollout=4"


def config(*overrides: str) -> RunConfig:
    return load_config(TINY, (UPDATES, *overrides))


@pytest.mark.parametrize(
    "other",
    ["batch.updates_per_rollout=1", "algorithm.selection.method=pass", "algorithm.selection.log_probs=old"],
)
def test_nobody_asks_where_no_later_update_may_choose(other: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert kept_positions(config(other)) is None
    assert agree_on_kept_positions(config(other), lambda *_: 7, ParallelGroups(), is_fused=False) is None
    assert capsys.readouterr().err == ""


def test_a_rank_plans_with_the_memory_that_it_has() -> None:
    asked: list[tuple[int, bool]] = []

    def plan(usable: int, is_fused: bool) -> int:
        asked.append((usable, is_fused))
        return 7

    assert agree_on_kept_positions(config(), plan, ParallelGroups(), is_fused=False) == 7
    ((usable, is_fused),) = asked
    assert not is_fused
    if not torch.cuda.is_available():
        assert 0 < usable < CPU_SHARE * psutil.virtual_memory().total


def test_less_memory_and_plain_layers_leave_room_for_fewer() -> None:
    positions = kept_positions(config())
    assert positions is not None
    half, plain, fused = positions(2**29, False), positions(2**30, False), positions(2**30, True)
    assert 0 < half < plain < fused
    assert positions(2**10, False) == 0
    # No more than the settings give a GPU, whatever the machine has.
    assert positions(2**60, False) == positions(76 * 2**30, False) > fused


@pytest.mark.parametrize(("plan", "why"), [(None, "cannot be planned"), (lambda *_: 0, "no memory is left")])
def test_without_room_auto_makes_a_pass_and_says_so_once(plan, why, capsys: pytest.CaptureFixture[str]) -> None:
    positions = agree_on_kept_positions(config(), plan, ParallelGroups(), is_fused=False)
    assert not build_algorithm(config(), kept_positions=positions).defers
    assert capsys.readouterr().err.count(why) == 1


def test_a_run_that_cannot_be_planned_has_no_plan(tmp_path: Path) -> None:
    assert kept_positions(config(f"model.path={tmp_path}")) is None


def test_the_method_decides_what_is_asked_of_an_optimizer_step() -> None:
    chosen = {
        method: build_algorithm(config(f"algorithm.selection.method={method}"), kept_positions=9)
        for method in ("auto", "pass", "deferred", "correction")
    }
    found = {method: (algorithm.defers, algorithm.kept_positions) for method, algorithm in chosen.items()}
    assert (found["auto"], found["pass"][0], found["deferred"]) == ((True, 9), False, (True, None))
    corrects = {method: (one.corrects, one.correction_cost is None) for method, one in chosen.items()}
    assert corrects["correction"] == (True, True) and not found["correction"][0]
    assert corrects["auto"] == (True, False)
    assert not corrects["pass"][0] and not corrects["deferred"][0]


def test_a_deterministic_run_corrects_only_if_asked() -> None:
    """A corrected update differs by rounding, and what fits into memory may differ from run to run."""
    chosen = [
        build_algorithm(config("run.deterministic=true", f"algorithm.selection.method={method}"), kept_positions=0)
        for method in ("auto", "correction")
    ]
    assert [algorithm.corrects for algorithm in chosen] == [False, True]
    # Without a first optimizer step that selects for nothing, no share is known.
    unknown = config("algorithm.old_log_probs=rollout", "algorithm.rollout_correction.level=none")
    assert not build_algorithm(unknown, kept_positions=0).corrects


def test_a_peak_is_that_of_its_step() -> None:
    if torch.cuda.is_available():
        pytest.skip("the peak is the GPU's here")
    restart_peak()
    before, size = peak_bytes(), 2**26
    held = torch.ones(size, dtype=torch.uint8)
    del held
    assert peak_bytes() >= before + 0.9 * size
    restart_peak()
    assert peak_bytes() < before + 0.9 * size
