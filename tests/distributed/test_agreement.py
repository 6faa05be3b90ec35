"""Ranks that fail, or measure, differently end alike."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from megacov.errors import ConfigError, MegacovError
from megacov.megatron.policy import UpdateResult
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import on_every_rank
from megacov.trainer.optimizer_step.metrics import update_metrics
from megacov.trainer.optimizer_step.update import UpdateOutcome
from megacov.types import LossOutput
from tests.support.run_ranks import run_cases


def _fail_on(failing: tuple[int, ...]) -> tuple[Any, ...]:
    rank = dist.get_rank()
    groups = ParallelGroups(world=dist.group.WORLD, control=dist.group.WORLD)

    def action() -> int:
        if rank in failing:
            raise ConfigError(f"rank {rank} has no such module")
        return rank

    try:
        return ("result", on_every_rank(action, groups))
    except MegacovError as error:
        return (type(error).__name__, str(error), error.is_echo)


def _metrics_of_uneven_ranks() -> dict[str, float]:
    """Rank 0 yields a metric that rank 1 does not, and a third is declared and never yielded."""
    rank = dist.get_rank()
    sums = {"k1": 1.0, "often": 2.0} | ({"at_times": 6.0} if rank == 0 else {})
    output = LossOutput(torch.tensor(0.5), {name: torch.tensor(value).double() for name, value in sums.items()})
    outcome = UpdateOutcome(UpdateResult(1.0, 1e-3, [output]), None)
    kept = torch.ones(3, dtype=torch.bool)
    return update_metrics([outcome], kept, ("often", "at_times", "never"), group=dist.group.WORLD)


def _call(name: str, *arguments: Any) -> Any:
    return {"fail": _fail_on, "metrics": _metrics_of_uneven_ranks}[name](*arguments)


@pytest.mark.dist
def test_ranks_that_differ_end_alike() -> None:
    cases = [("fail", ()), ("fail", (1,)), ("fail", (0, 1)), ("metrics",)]
    sound, one, both, metrics = run_cases(_call, cases, world_size=2)
    assert sound == [("result", 0), ("result", 1)]
    sentence = "rank 1 has no such module"
    assert one == [("ConfigError", sentence, True), ("ConfigError", sentence, False)]
    assert [found[1:] for found in both] == [("rank 0 has no such module", False), (sentence, False)]
    # Six tokens on both ranks together.
    expected = {"policy/k1": 2 / 6, "policy/often": 4 / 6, "policy/at_times": 1.0, "policy/loss": 1.0}
    expected |= {"policy/grad_norm": 1.0, "policy/lr": 1e-3}
    assert metrics[0] == metrics[1] == pytest.approx(expected)
