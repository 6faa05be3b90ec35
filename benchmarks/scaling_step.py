"""A whole step on a number of GPUs: how servers and trainer share them, their layouts, and their waiting times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Literal

from benchmarks.scaling_assumptions import Assumptions, Model, dense
from benchmarks.scaling_rollout import Rollout, Servers, response_lengths, simulate_rollout
from benchmarks.scaling_trainer import TrainerSeconds, Training, train_seconds
from benchmarks.weight_sync_projection import Assumptions as SyncRates
from benchmarks.weight_sync_projection import Push, project
from megacov.cli.check_plan import RunPlan, plan_run
from megacov.config import load_config
from megacov.plan import Layout, plan_batch, plan_room, plan_trainer
from megacov.plan.activations import Recompute

Mode = Literal["in turn", "one step off", "colocated"]
_TENSORS, _PIPELINES, _CONTEXTS = (4, 8), (1, 2, 4, 8), (1, 2, 4)
_RECOMPUTES: tuple[Recompute, ...] = ("none", "full")
# The trainer's share in eighths of the nodes, rounded down to whole nodes.
_TRAINER_EIGHTHS = range(1, 8)


@dataclass(frozen=True)
class Run:
    """A run file, as `megacov check` reads it, and the assumptions. `may_defer` is False for selection.method pass."""

    plan: RunPlan
    model: Model
    given: Assumptions
    static_fraction: float
    selects: bool
    may_defer: bool = True

    def with_prompts(self, factor: int) -> Run:
        """The same run with `factor` times the prompts in the same number of optimizer steps."""
        batch = replace(self.plan.batch, prompts=self.plan.batch.prompts * factor)
        return replace(self, plan=replace(self.plan, batch=batch))

    @property
    def responses(self) -> tuple[int, ...]:
        """Number of tokens of each response, longest first."""
        batch = self.plan.batch
        number = batch.prompts * batch.samples_per_prompt
        return response_lengths(self.given.lengths, number=number, longest=batch.max_response_length)

    @property
    def sequences(self) -> tuple[int, ...]:
        """Number of tokens of each sequence, prompt included, longest first."""
        return tuple(n + int(self.given.lengths.prompt) for n in self.responses)


@dataclass(frozen=True)
class Step:
    """A step. Phases are in seconds; `tokens` are those of a rollout batch, prompts included."""

    mode: Mode
    gpus: int
    trainer_gpus: int
    servers: Servers
    training: Training
    tokens: int
    rollout: Rollout
    sync: float
    trainer: TrainerSeconds

    @property
    def waited(self) -> float:
        """Time in which the trainer waits for a rollout."""
        ahead = self.trainer.total if self.mode == "one step off" else 0.0
        return max(0.0, self.rollout.seconds - ahead)

    @property
    def seconds(self) -> float:
        """Time from one step to the next."""
        return self.waited + self.sync + self.trainer.total

    @property
    def server_idle(self) -> float:
        """Share of the step in which servers do not sample; loading weights is part of it."""
        return 1 - self.rollout.seconds / self.seconds

    @property
    def trainer_idle(self) -> float:
        """Share of the step in which the trainer waits for samples; a push of weights is not part of it."""
        return self.waited / self.seconds

    @property
    def tokens_per_gpu(self) -> float:
        """Trained tokens for each second and GPU."""
        return self.tokens / self.seconds / self.gpus


def read_run(path: Path, given: Assumptions) -> Run:
    """Read a run file, and add the assumptions that it does not contain."""
    plan = plan_run(load_config(path))
    arguments = plan.config.rollout.server_arguments
    selection = plan.config.algorithm.selection
    selects = selection is not None and selection.scope == "mini_batch" and selection.log_probs == "current"
    return Run(plan, dense(plan.sizes), given, float(str(arguments["mem-fraction-static"])), selects)


def trainings(run: Run, gpus: int) -> Iterator[Training]:
    """Yield the layouts of so many trainer GPUs that fit into their memory according to `megacov.plan`."""
    plan, batch = run.plan, run.plan.batch
    longest = batch.max_prompt_length + batch.max_response_length
    per_update = batch.prompts * batch.samples_per_prompt // batch.updates
    for tensor, pipeline, context in product(_TENSORS, _PIPELINES, _CONTEXTS):
        data, rest = divmod(gpus, tensor * pipeline * context)
        if rest or not 0 < data <= per_update:
            continue
        layout = Layout(tensor, True, pipeline, 1, context, 1, data)
        for recompute, most in product(_RECOMPUTES, (longest, 2 * longest)):
            settings = replace(plan.settings, recompute=recompute)
            counted = plan_batch(replace(batch, micro_batch_tokens=most), layout)
            stages = plan_trainer(plan.sizes, layout, counted, settings)
            if max(stage.peak for stage in stages) <= plan.cluster.usable_bytes:
                usable = plan.cluster.usable_bytes
                room = plan_room(plan.sizes, layout, counted, settings, usable_bytes=usable)
                yield Training(
                    layout,
                    recompute,
                    most,
                    batch.updates,
                    run.selects,
                    room.positions if run.may_defer else 0,
                    room.position_bytes,
                    plan.config.checkpoint.every,
                    max(stage.staging for stage in stages),
                )


def fastest_trainer(run: Run, gpus: int) -> tuple[TrainerSeconds, Training] | None:
    """The fastest of all layouts of so many GPUs that fit, with its seconds; None if none fits."""
    lengths = run.sequences[:: run.plan.batch.updates]
    found = [(train_seconds(run.model, run.given, one, lengths), one) for one in trainings(run, gpus)]
    return min(found, key=lambda pair: pair[0].total, default=None)


def fastest_rollout(run: Run, gpus: int, *, taken: float = 0.0) -> tuple[Rollout, Servers]:
    """Find the size of a server with which the rollout is fastest.

    Args:
        run: the run to simulate.
        gpus: number of GPUs of all servers.
        taken: bytes of each GPU that a colocated trainer keeps.

    Returns:
        Seconds of the rollout, and the servers.
    """
    run_gpu = run.given.gpu
    static = min(run_gpu.capacity * run.static_fraction, run.plan.cluster.usable_bytes - taken)
    found = []
    for tensor in (1, 2, 4, 8):
        servers = Servers(gpus // tensor, tensor, static)
        samples = run.plan.batch.samples_per_prompt
        found.append((simulate_rollout(run.model, run.given, servers, run.responses, samples=samples), servers))
    return min(found, key=lambda pair: pair[0].seconds)


def push_seconds(
    model: Model,
    given: Assumptions,
    layout: Layout,
    servers: Servers,
    *,
    colocated: bool,
    bucket_bytes: int = 512 * 1024**2,
) -> float:
    """Seconds of a push of the weights, according to benchmarks/weight_sync_projection.py.

    Args:
        model: the model that is pushed.
        given: assumptions with the rates.
        layout: layout of the trainer.
        servers: servers that receive the weights.
        colocated: whether servers use the trainer's own GPUs.
        bucket_bytes: size of a message.

    Returns:
        Seconds of all phases together.
    """
    gpu, costs = given.gpu, given.costs
    rates = SyncRates(network=gpu.network, nvlink=gpu.nvlink, memory=gpu.memory, request_s=costs.request)
    total = model.weight_bytes
    later = total * (layout.pipeline - 1) // layout.pipeline
    push = Push(total, later, layout.tensor, servers.number, servers.tensor, bucket_bytes)
    return project(rates, push)["ipc" if colocated else "broadcast"].total_s


def shared_steps(run: Run, gpus: int) -> dict[Mode, Step]:
    """The fastest step of each mode with separate nodes for trainer and servers, over all shares of the trainer."""
    per_node = run.plan.cluster.gpus_per_node
    nodes = gpus // per_node
    modes: tuple[Mode, ...] = ("in turn", "one step off")
    steps: dict[Mode, list[Step]] = {mode: [] for mode in modes}
    for trainer_nodes in sorted({nodes * eighth // 8 for eighth in _TRAINER_EIGHTHS} - {0}):
        trainer_gpus = trainer_nodes * per_node
        trained = fastest_trainer(run, trainer_gpus)
        if trained is not None:
            sampled = fastest_rollout(run, gpus - trainer_gpus)
            for mode in modes:
                steps[mode].append(_step(run, mode, gpus, trainer_gpus, trained, sampled))
    return {mode: min(found, key=lambda step: step.seconds) for mode, found in steps.items()}


def colocated_step(run: Run, gpus: int) -> Step:
    """The step if trainer and servers take turns on the same GPUs, on which the trainer's memory stays allocated."""
    trained = fastest_trainer(run, gpus)
    assert trained is not None
    training = trained[1]
    counted = plan_batch(replace(run.plan.batch, micro_batch_tokens=training.micro_batch_tokens), training.layout)
    settings = replace(run.plan.settings, recompute=training.recompute)
    stages = plan_trainer(run.plan.sizes, training.layout, counted, settings)
    sampled = fastest_rollout(run, gpus, taken=max(stage.resident for stage in stages))
    return _step(run, "colocated", gpus, gpus, trained, sampled)


def _step(
    run: Run,
    mode: Mode,
    gpus: int,
    trainer_gpus: int,
    trained: tuple[TrainerSeconds, Training],
    sampled: tuple[Rollout, Servers],
) -> Step:
    (seconds, training), (rollout, servers) = trained, sampled
    sync = push_seconds(
        run.model,
        run.given,
        training.layout,
        servers,
        colocated=mode == "colocated",
        bucket_bytes=run.plan.settings.bucket_bytes,
    )
    return Step(mode, gpus, trainer_gpus, servers, training, sum(run.sequences), rollout, sync, seconds)
