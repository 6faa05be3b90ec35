"""A curriculum from batch to batch: the same at any speed, and after a resume from any checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from megacov.config import load_config
from megacov.data import PromptDraw, PromptStream
from megacov.rollout import PromptSampler, RolloutClient, SampledGroups, Sampler, SamplingReport
from megacov.trainer.rollout.curriculum import account_for, begin_curriculum
from megacov.trainer.state import RolloutState
from tests.support.judging import judged_by
from tests.support.over_sampling import Server
from tests.support.partial_rollouts import prompt
from tests.support.scripted_server import scripted_clients

PROMPTS = [prompt(index) for index in range(12)]
COPIES, WANTED, STEPS = 6, 3, 12
SETTINGS = "data.curriculum={low: 0.2, high: 0.8, decay: 0.5, right_above: 0.5, min_samples: 6, revisit_every: 3}"


def reward(index: int, copy: int, digest: bytes) -> float:
    """Prompts are the easier the later they are in the data; the first is never answered rightly."""
    return float(digest[copy] % (len(PROMPTS) - 1) < index)


@dataclass
class Run:
    """What a checkpoint holds of a run's rollouts, and each batch so far."""

    state: RolloutState
    position: int = 0
    batches: list[SampledGroups] = field(default_factory=list)
    metrics: list[dict[str, float]] = field(default_factory=list)

    def checkpoint(self) -> tuple[str, int]:
        assert self.state.accuracies is not None
        return self.state.accuracies.dump(), self.position

    def go_on(self, *servers: Server, first_step: int = 0, last_step: int = STEPS, over_sample: float = 1.0) -> None:
        with scripted_clients(*servers, vocab_size=1000) as (clients, run_in_loop):
            for step in range(first_step, last_step):
                run_in_loop(self._step(clients, step, over_sample=over_sample))

    async def _step(self, clients: list[RolloutClient], step: int, *, over_sample: float) -> None:
        sampler = Sampler(
            PromptSampler(
                clients=clients,
                verify=judged_by(lambda text, _: float(text)),
                samples_per_prompt=COPIES,
                max_response_length=16,
                filter_groups=True,
            ),
            over_sample=over_sample,
        )
        draw = PromptDraw(PromptStream(PROMPTS, seed=1, position=self.position), self.state.accuracies)
        groups = await sampler.sample_groups(draw, WANTED, expected_version="v0", seed=step)
        used = draw.first(groups.num_prompts)
        self.state, metrics = account_for(groups, used, self.state)
        self.position = used.position
        self.batches.append(groups)
        self.metrics.append(metrics)


def begun(text: str | None = None, position: int = 0) -> Run:
    """A run that begins, or continues from a checkpoint."""
    accuracies = begin_curriculum(load_config("yaml_configs/runs/tiny_grpo.yaml", (SETTINGS,)), num_prompts=12)
    assert accuracies is not None
    return Run(RolloutState(accuracies=accuracies if text is None else accuracies.load(text)), position)


def what_is_trained_on(run: Run) -> list[tuple[object, ...]]:
    return [(batch.samples, batch.dropped, batch.num_prompts) for batch in run.batches]


@pytest.fixture(scope="module")
def alone() -> tuple[Run, list[tuple[str, int]]]:
    """A run left alone, and its checkpoints."""
    run, checkpoints = begun(), []
    for step in range(STEPS):
        run.go_on(Server(reward=reward), first_step=step, last_step=step + 1)
        checkpoints.append(run.checkpoint())
    return run, checkpoints


def test_a_run_resumed_anywhere_equals_the_run_left_alone(alone: tuple[Run, list[tuple[str, int]]]) -> None:
    run, checkpoints = alone
    for step in (1, 4, 9):
        resumed = begun(*checkpoints[step - 1])
        # Faster servers, and more prompts at once, than those of the run left alone.
        resumed.go_on(*[Server(reward=reward, slowness_s=s) for s in (0.0, 0.01)], first_step=step, over_sample=2.5)
        assert what_is_trained_on(resumed) == what_is_trained_on(run)[step:]
        assert resumed.metrics == run.metrics[step:]
        assert resumed.checkpoint() == run.checkpoint()


def test_prompts_are_passed_over_and_come_back(alone: tuple[Run, list[tuple[str, int]]]) -> None:
    run, _ = alone
    assert sum(metrics["curriculum/skipped"] for metrics in run.metrics) > 0
    assert run.position == sum(
        batch.num_prompts + int(metrics["curriculum/skipped"])
        for batch, metrics in zip(run.batches, run.metrics, strict=True)
    )
    drawn = [sample.prompt.index for batch in run.batches for sample in (*batch.samples, *batch.dropped)[::COPIES]]
    # Prompts 0 and 11 are always wrong and always right: after the first time, one turn in three is theirs.
    epochs = run.position // len(PROMPTS)
    assert epochs >= 4
    for index in (0, 11):
        assert 1 + (epochs - 1) // 3 <= drawn.count(index) <= 1 + -(-epochs // 3)
    assert drawn.count(6) >= epochs - 1
    # Dropped groups count.
    accuracies = run.state.accuracies
    assert accuracies is not None and accuracies.mean[0] == 0.0 and accuracies.mean[11] == 1.0


def test_without_a_curriculum_there_is_nothing_to_account_for() -> None:
    assert begin_curriculum(load_config("yaml_configs/runs/tiny_grpo.yaml"), num_prompts=12) is None
    groups, draw = SampledGroups([], [], SamplingReport()), PromptDraw(PromptStream(PROMPTS, seed=1))
    assert account_for(groups, draw.first(0), RolloutState()) == (RolloutState(), {})
