"""Ranks push weights together: they stay in step if servers fail, and agree whether the servers hold the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megacov.errors import MegacovError, RolloutError, WeightSyncError
from megacov.megatron.policy import Policy
from megacov.rollout.client.connection import RequestRefusedError
from megacov.trainer.optimizer_step.mismatch import check_mismatch
from megacov.trainer.rollout.exchange import RolloutExchange
from tests.support.policies import (
    GRPO,
    TINY_POLICY,
    laid_out_policy,
    make_rollout_batch,
    own_log_probs,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

pytestmark = pytest.mark.dist
LAYOUTS = [(2, 1), (1, 2)]


class Taker:
    """Stands in for RolloutWorker: takes a number of tensors of each push and returns or raises its outcome."""

    def __init__(self, *pushes: tuple[int, str | MegacovError | None]) -> None:
        self.pushes, self.taken = list(pushes), {}

    def push_weights(self, weights: Iterable[tuple[str, Tensor]], *, version: int) -> str | None:
        """Has the signature of RolloutWorker's method."""
        count, outcome = self.pushes.pop(0)
        self.taken = dict(pair for pair, _ in zip(weights, range(count), strict=False))
        if isinstance(outcome, MegacovError):
            raise outcome
        return outcome


ALL = 1000
PUSHES: dict[str, tuple[tuple[int, Any], ...]] = {
    "well": ((ALL, None),),
    "fails before the first tensor": ((0, "gone"), (ALL, None)),
    "fails in the middle": ((3, "gone"), (5, "gone, too"), (ALL, None)),
    "would fail for ever": ((3, "gone"),) * 10,
    "refused": ((3, WeightSyncError("no")),),
    "refused by an error that errors.py does not have": ((3, RequestRefusedError("no")),),
}


def _push(tensor: int, pipeline: int, name: str) -> Any:
    with laid_out_policy(tensor, pipeline) as policy:
        taker = Taker(*PUSHES[name])
        phase = RolloutExchange(policy.groups, taker if policy.groups.world_rank == 0 else None)  # type: ignore[arg-type]
        try:
            phase.push_weights(policy, version=1)
            phase.push_weights(policy, version=1)  # does nothing: the servers hold these weights
        except (WeightSyncError, RolloutError) as error:  # every rank must raise the same kind
            return str(error)
        assert not taker.pushes or policy.groups.world_rank > 0
        return taker.taken


class Leader(Taker):
    """Leads the other rank through some commands that need no group, and returns or raises its outcome."""

    def push_weights(self, weights: Any, *, version: int) -> str | None:
        """Has the signature of RolloutWorker's method."""
        count, outcome = self.pushes.pop(0)
        for number in range(min(count, 3)):
            weights.lead({"do": "send", "number": number, "with_sums": False, "timeout_s": 1.0})
        self.taken = {name: tensor.clone() for name, tensor in weights}
        if isinstance(outcome, MegacovError):
            raise outcome
        return outcome


def _lead(tensor: int, pipeline: int, name: str) -> Any:
    with laid_out_policy(tensor, pipeline) as policy:
        leader: Any = Leader(*PUSHES[name])
        worker = leader if policy.groups.world_rank == 0 else None
        phase = RolloutExchange(policy.groups, worker, sends_shards=True)
        try:
            phase.push_weights(policy, version=1)
            phase.push_weights(policy, version=1)
        except (WeightSyncError, RolloutError) as error:
            return str(error)
        return len(leader.pushes), sorted(leader.taken)


def _judge(tensor: int, pipeline: int, off: float, max_mismatch: float | None) -> str:
    """Result of the check for a batch in which the servers' log-probs differ by `off`."""
    with laid_out_policy(tensor, pipeline) as policy:
        batch = make_rollout_batch()
        batch.rollout_log_probs.copy_(own_log_probs(policy, batch) + off)
        inputs = [part for each in prepare_mini_batches(policy, batch, GRPO, _settings(policy)) for part in each.inputs]
        try:
            check_mismatch(inputs, policy.groups, max_mismatch=max_mismatch)
        except WeightSyncError as error:
            return str(error)
    return ""


def _settings(policy: Policy) -> Any:
    return step_settings(policy, num_updates=2)


PUSH_CASES = [(_push, *layout, name) for layout in LAYOUTS for name in PUSHES]
# Difference and limit; only the third is refused.
JUDGED = [(0.0, 1e-4), (0.4, 0.5), (-0.6, 0.5), (9.0, None)]
LEAD_CASES = [(_lead, *layout, name) for layout in LAYOUTS for name in PUSHES]
JUDGE_CASES = [(_judge, *layout, *case) for layout in LAYOUTS for case in JUDGED]


def _call(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


@pytest.fixture(scope="module")
def results() -> list[list[Any]]:
    """Results of both ranks, by case."""
    return run_cases(_call, [*PUSH_CASES, *LEAD_CASES, *JUDGE_CASES], world_size=2)


def test_ranks_stay_in_step_when_a_push_fails(results) -> None:
    expected = load_file(TINY_POLICY / "model.safetensors")
    for (*_, name), (first, second) in zip(PUSH_CASES, results, strict=False):
        if name.startswith("refused"):
            assert first == second == "no"
        elif name == "would fail for ever":
            assert first == second
            assert "in 4 attempts: gone" in first
        else:
            assert second == {}
            assert first.keys() >= expected.keys()
            assert all(torch.equal(first[each], tensor) for each, tensor in expected.items())


def test_ranks_stay_in_step_when_all_send_and_a_push_fails(results) -> None:
    led = results[len(PUSH_CASES) : len(PUSH_CASES) + len(LEAD_CASES)]
    for (_, _, pipeline, name), (first, second) in zip(LEAD_CASES, led, strict=True):
        if name.startswith("refused"):
            assert first == second == "no"
        elif name == "would fail for ever":
            assert first == second
            assert "in 4 attempts: gone" in first
        else:
            num_left, names = first
            assert num_left == 0
            assert "embedding.word_embeddings.weight" in names
            assert ("output_layer.weight" in names) == (pipeline == 1)  # nothing was gathered


def test_all_ranks_refuse_log_probs_of_other_weights(results) -> None:
    judged = results[len(PUSH_CASES) + len(LEAD_CASES) :]
    assert [first for first, _ in judged] == [second for _, second in judged]
    for (*_, off, _limit), (sentence, _) in zip(JUDGE_CASES, judged, strict=True):
        assert ("differ by 0.6 nats a token" in sentence) == bool(sentence) == (off == -0.6)
