"""From a configuration to the parts of a run. Here configuration ends: what is built takes plain values."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacov.config import RunConfig, dump_config
from megacov.megatron.model import read_model_shape
from megacov.megatron.optimizer import AdamSettings
from megacov.megatron.policy import Policy, build_policy
from megacov.monitor.tensorboard import MetricWriter
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import on_rank_zero
from megacov.trainer.algorithm import Algorithm, build_algorithm
from megacov.trainer.progress import ProgressReport
from megacov.trainer.rollout_phase import RolloutPhase
from megacov.trainer.rollout_worker import RolloutWorker
from megacov.trainer.run_folder import open_run_folder
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepReport, StepSettings


@dataclass
class Run:
    """The parts of a run on this rank. `writer` and `progress` are on rank 0 only."""

    config: RunConfig
    policy: Policy
    rollout: RolloutPhase
    algorithm: Algorithm
    settings: StepSettings
    state: TrainState
    writer: MetricWriter | None
    progress: ProgressReport | None

    def record(self, report: StepReport) -> None:
        """Write and show a finished step; does nothing off rank 0.

        Args:
            report: of the step.
        """
        if self.writer is None or self.progress is None:
            return
        step = self.state.step
        if step % self.config.monitor.log_every == 0:
            self.writer.write_scalars(report.metrics, step=step)
        if report.histogram is not None:
            self.writer.write_histogram("cov/histogram", report.histogram, step=step)
        self.writer.flush()
        self.progress.step(step, report.metrics)


def _build_policy(config: RunConfig, groups: ParallelGroups) -> Policy:
    optimizer = config.optimizer
    return build_policy(
        config.model.path,
        groups,
        AdamSettings(
            lr=optimizer.lr,
            min_lr=optimizer.min_lr,
            warmup_steps=optimizer.warmup_steps,
            decay=optimizer.decay,
            decay_steps=config.num_updates,
            beta1=optimizer.beta1,
            beta2=optimizer.beta2,
            eps=optimizer.eps,
            weight_decay=optimizer.weight_decay,
            clip_grad=optimizer.clip_grad,
        ),
        dtype=config.model.dtype,
        vocab_divisible_by=config.model.vocab_divisible_by,
        transformer_engine=config.model.transformer_engine,
        temperature=config.rollout.temperature,
        with_reference=config.algorithm.ref_kl_coef > 0,
    )


@contextmanager
def opened_run(config: RunConfig, groups: ParallelGroups) -> Iterator[Run]:
    """Build everything, and close it again however the run ends. A collective of all ranks.

    Args:
        config: of the run.
        groups: of this rank.

    Yields:
        The run, before its first step.

    Raises:
        MegacovError: a part cannot be built.
    """
    is_rank_zero = groups.world_rank == 0
    with ExitStack() as stack:
        algorithm = build_algorithm(config)
        folder = on_rank_zero(lambda: open_run_folder(config), groups)
        vocab_size = read_model_shape(config.model.path).vocab_size
        worker = on_rank_zero(lambda: _start_worker(config, folder, vocab_size, stack), groups)
        policy = _build_policy(config, groups)
        rollout = RolloutPhase(groups, worker)
        on_rank_zero(lambda: worker.wait_ready() if worker else None, groups)
        writer = progress = None
        if is_rank_zero:
            assert folder is not None
            writer = stack.enter_context(MetricWriter(folder / "tensorboard"))
            writer.write_config(dump_config(config))
            choice = config.monitor.progress
            progress = stack.enter_context(ProgressReport(config.run.name, num_steps=config.run.steps, choice=choice))
        settings = StepSettings(
            num_updates=config.batch.updates_per_rollout,
            micro_batch_size=config.batch.micro_batch_size,
            seed=config.run.seed,
            log_every=config.monitor.log_every,
            cov_histogram_every=config.monitor.cov_histogram_every,
        )
        yield Run(config, policy, rollout, algorithm, settings, TrainState(), writer, progress)


def _start_worker(config: RunConfig, folder: Path | None, vocab_size: int, stack: ExitStack) -> RolloutWorker:
    assert folder is not None
    worker = RolloutWorker(config, folder, vocab_size=vocab_size)
    stack.callback(worker.close)
    return worker
