"""From a configuration to the parts of a run. Here configuration ends: what is built takes plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from megacov.config import RunConfig, dump_config
from megacov.data.micro_batch import SequenceLayout
from megacov.megatron.model import ModelSettings
from megacov.megatron.model_shape import ModelShape, check_expert_split, check_length, check_split, read_model_shape
from megacov.megatron.optimizer import AdamSettings
from megacov.megatron.policy import Policy, build_policy
from megacov.megatron.weights import check_hf_weights
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


def _build_policy(config: RunConfig, shape: ModelShape, groups: ParallelGroups) -> Policy:
    model = config.model
    settings = ModelSettings(
        dtype=model.dtype,
        vocab_divisible_by=model.vocab_divisible_by,
        transformer_engine=model.transformer_engine,
        virtual_pipeline=config.parallel.virtual_pipeline,
        sequence_parallel=config.parallel.sequence,
        recompute=model.recompute,
        deterministic=config.run.deterministic,
    )
    adam = AdamSettings(**config.optimizer.model_dump(), decay_steps=config.num_updates)
    return build_policy(
        model.path,
        shape,
        groups,
        settings,
        adam,
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
    with ExitStack() as stack:
        algorithm = build_algorithm(config)
        folder = on_rank_zero(lambda: open_run_folder(config), groups)
        # What is wrong with the model folder is said by rank 0, before every rank reads it for itself.
        on_rank_zero(lambda: _check_model_folder(config), groups)
        shape = read_model_shape(config.model.path)
        progress = _make_progress(config) if groups.world_rank == 0 else None
        on_group = None if progress is None else progress.group_sampled
        worker = on_rank_zero(lambda: _start_worker(config, folder, shape.vocab_size, on_group, stack), groups)
        policy = _build_policy(config, shape, groups)
        rollout = RolloutPhase(groups, worker)
        on_rank_zero(lambda: worker.wait_ready() if worker else None, groups)
        writer = None
        if progress is not None:
            assert folder is not None
            writer = stack.enter_context(MetricWriter(folder / "tensorboard"))
            writer.write_config(dump_config(config))
            stack.enter_context(progress)
        settings = StepSettings(
            num_updates=config.batch.updates_per_rollout,
            micro_batch_tokens=config.batch.micro_batch_tokens,
            count_multiple=config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1,
            same_count=config.parallel.expert > 1,
            layout=SequenceLayout(
                packed=config.batch.packed,
                cp_rank=groups.cp_rank,
                cp_size=groups.cp_size,
                share_multiple=groups.tp_size if config.parallel.sequence else 1,
            ),
            seed=config.run.seed,
            log_every=config.monitor.log_every,
            cov_histogram_every=config.monitor.cov_histogram_every,
        )
        yield Run(config, policy, rollout, algorithm, settings, TrainState(), writer, progress)


def _check_model_folder(config: RunConfig) -> None:
    shape, parallel = read_model_shape(config.model.path), config.parallel
    check_split(shape, tensor=parallel.tensor, pipeline=parallel.pipeline, virtual_pipeline=parallel.virtual_pipeline)
    check_expert_split(shape, expert=parallel.expert, tensor=parallel.tensor, sequence=parallel.sequence)
    longest_response = config.rollout.max_response_length
    check_length(shape, max_prompt_length=config.data.max_prompt_length, max_response_length=longest_response)
    check_hf_weights(config.model.path, shape)


def _make_progress(config: RunConfig) -> ProgressReport:
    return ProgressReport(
        config.run.name,
        num_steps=config.run.steps,
        num_groups=config.rollout.prompts_per_step,
        choice=config.monitor.progress,
    )


def _start_worker(
    config: RunConfig, folder: Path | None, vocab_size: int, on_group: Callable[[], None] | None, stack: ExitStack
) -> RolloutWorker:
    assert folder is not None
    worker = RolloutWorker(config, folder, vocab_size=vocab_size, on_group=on_group)
    stack.callback(worker.close)
    return worker
