"""From a configuration to the parts of a run. Here configuration ends: what is built takes plain values."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from megacov.checkpoint.finished import note_finished
from megacov.checkpoint.store import CheckpointStore
from megacov.config import RunConfig, fuses_output
from megacov.data.micro_batch import SequenceLayout
from megacov.data.packing import MicroBatchSettings
from megacov.errors import CheckpointError, LeaveRequested, RewardError, RolloutError, WeightSyncError
from megacov.megatron.model import ModelSettings, use_transformer_engine
from megacov.megatron.model_shape import ModelShape, check_expert_split, check_length, check_split, read_model_shape
from megacov.megatron.optimizer import AdamSettings
from megacov.megatron.policy import Policy, build_policy
from megacov.megatron.weights import check_hf_weights
from megacov.monitor.run_end import NotedEnd
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import on_every_rank, on_rank_zero
from megacov.trainer.algorithm import Algorithm, build_algorithm
from megacov.trainer.clock import StepClock
from megacov.trainer.kept_positions import KeptPositions, agree_on_kept_positions
from megacov.trainer.progress import ProgressReport
from megacov.trainer.recorder import Recorder, open_recorder
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.rollout.worker import RolloutWorker
from megacov.trainer.run_folder import find_run_folder, open_run_folder
from megacov.trainer.saving.about_run import describe_run, layout_of
from megacov.trainer.saving.checkpointing import Checkpointer, SaveSettings
from megacov.trainer.saving.continuation import find_accepted_checkpoint
from megacov.trainer.saving.restore import read_rollout_state, restore
from megacov.trainer.state import TrainState
from megacov.trainer.step import StepReport, StepSettings


@dataclass(frozen=True)
class Resumption:
    """How to continue from a checkpoint. `allowed` names settings that the user wants to differ from it."""

    allowed: tuple[str, ...] = ()


@dataclass
class Run:
    """The parts of a run on this rank. Only rank 0 has a recorder.

    clock_of_next_step: of a step whose batch was begun before the step; None for one that begins with its batch.
    """

    config: RunConfig
    policy: Policy
    rollout: RolloutExchange
    algorithm: Algorithm
    settings: StepSettings
    state: TrainState
    checkpointer: Checkpointer
    recorder: Recorder | None
    clock_of_next_step: StepClock | None = None

    def record(self, report: StepReport) -> None:
        """Write and show a finished step; does nothing off rank 0."""
        if self.recorder is not None:
            self.recorder.record(report, step=self.state.step, saves=self.checkpointer.take_metrics())

    def save_and_leave(self) -> None:
        """Save, and end the run. A collective of all ranks.

        Raises:
            LeaveRequested: always, unless the checkpoint cannot be written.
            CheckpointError: it cannot.
        """
        self.checkpointer.save_now(self.policy, self.state)
        folder = self.checkpointer.run_folder
        raise LeaveRequested(
            f"asked to leave: step {self.state.step} is saved; continue with `megacov resume {folder}`."
        )

    def finish(self) -> None:
        """Save the last step, and note that the run has come to its end. A collective of all ranks.

        Raises:
            CheckpointError: the disk refuses it.
        """
        self.checkpointer.save_now(self.policy, self.state)
        if self.recorder is not None:
            note_finished(self.checkpointer.run_folder, step=self.state.step)

    @contextmanager
    def saved_if_servers_are_lost(self) -> Iterator[None]:
        """Save before an error of servers or verifier ends the run. A collective of all ranks if that happens.

        The checkpoint holds the state on entering: such errors come before a step's first optimizer step, but perhaps
        after the step's prompts were taken from the data.

        Raises:
            RolloutError: raised inside, on all ranks.
            RewardError: raised inside, on all ranks.
            WeightSyncError: raised inside, on all ranks.
        """
        before, rollout_state = replace(self.state), self.rollout.state
        try:
            yield
        except (RolloutError, RewardError, WeightSyncError) as error:
            if self.config.checkpoint.every > 0:
                self.rollout.state = rollout_state
                with suppress(CheckpointError):  # the first error counts, and the checkpointer has reported this one
                    self.checkpointer.save_now(self.policy, before)
                    resume = f"`megacov resume {self.checkpointer.run_folder}`"
                    error.args = (f"{error} (step {before.step} is saved; continue with {resume})",)
            raise


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
        fused_output=fuses_output(model.fused_output, tensor=config.parallel.tensor),
    )
    adam = AdamSettings(**config.optimizer.model_dump(exclude={"max_skipped_updates"}), decay_steps=config.num_updates)
    return build_policy(
        model.path,
        shape,
        groups,
        settings,
        adam,
        temperature=config.temperature,
        with_reference=config.algorithm.ref_kl_coef > 0,
    )


@contextmanager
def opened_run(
    config: RunConfig,
    groups: ParallelGroups,
    *,
    resumption: Resumption | None = None,
    kept_positions: KeptPositions | None = None,
) -> Iterator[Run]:
    """Build everything, and close it again however the run ends. A collective of all ranks.

    Args:
        config: the resolved configuration, equal on all ranks.
        groups: this rank's process groups.
        resumption: how to continue from the newest good checkpoint in the run's folder; None begins anew.
        kept_positions: as in `agree_on_kept_positions`.

    Yields:
        The run, before its next step.

    Raises:
        MegacovError: a part cannot be built.
    """
    with ExitStack() as stack:
        algorithm = _agree_on_algorithm(config, kept_positions, groups)
        # Rank 0 checks all that the run reads before it writes anything, and before it moves an earlier run aside.
        on_rank_zero(lambda: _check_model_folder(config), groups)
        shape = read_model_shape(config.model.path)
        progress = _make_progress(config) if groups.world_rank == 0 else None
        on_group = None if progress is None else progress.group_sampled
        worker = on_rank_zero(lambda: _make_worker(config, shape.vocab_size, on_group, stack), groups)
        lock = on_rank_zero(lambda: open_run_folder(config, stack, is_resumed=resumption is not None), groups)
        if groups.world_rank == 0:
            stack.enter_context(NotedEnd(config.run.directory))
        store = CheckpointStore(config.run.directory)
        about_run = describe_run(config, shape, groups)
        allowed = None if resumption is None else resumption.allowed
        good = find_accepted_checkpoint(config, store, about_run, groups, allowed=allowed)
        on_rank_zero(lambda: _start_servers(worker, stack), groups)
        policy = _build_policy(config, shape, groups)
        state = TrainState() if good is None else restore(policy, good, groups, layout=layout_of(config))
        sends_shards = config.weight_sync.traits.loader is not None
        rollout = RolloutExchange(groups, worker, sends_shards=sends_shards)
        if worker is not None and good is not None:
            worker.state = read_rollout_state(good, worker.state)
        on_rank_zero(lambda: worker.wait_ready() if worker else None, groups)
        recorder = None
        if worker is not None and progress is not None:
            first, text_of = state.step + 1 if good else None, worker.samples.texts.of_token
            recorder = open_recorder(config, algorithm, progress, stack, first_step=first, text_of_token=text_of)
        settings = SaveSettings(**config.checkpoint.model_dump(exclude={"grace_s"}))
        checkpointer = Checkpointer(
            store,
            groups,
            settings,
            about_run=about_run,
            rollout_state=lambda: rollout.state,
            last_saved=None if good is None else state.step,
            find_run_folder=None if lock is None else partial(find_run_folder, config, lock),
        )
        step_settings = _step_settings(config, groups)
        yield Run(config, policy, rollout, algorithm, step_settings, state, checkpointer, recorder)


def _agree_on_algorithm(config: RunConfig, plan: KeptPositions | None, groups: ParallelGroups) -> Algorithm:
    is_fused = use_transformer_engine(config.model.transformer_engine, group=groups.control)
    positions = agree_on_kept_positions(config, plan, groups, is_fused=is_fused)
    # An imported loss may be missing on one node alone.
    return on_every_rank(lambda: build_algorithm(config, kept_positions=positions), groups)


def _step_settings(config: RunConfig, groups: ParallelGroups) -> StepSettings:
    return StepSettings(
        num_updates=config.batch.updates_per_rollout,
        micro_batches=MicroBatchSettings(
            tokens=config.batch.micro_batch_tokens,
            layout=SequenceLayout(
                packed=config.batch.packed,
                cp_rank=groups.cp_rank,
                cp_size=groups.cp_size,
                share_multiple=groups.tp_size if config.parallel.sequence else 1,
            ),
            dp_rank=groups.dp_rank,
            dp_size=groups.dp_size,
            count_multiple=config.parallel.pipeline if config.parallel.virtual_pipeline > 1 else 1,
            same_count=config.parallel.expert > 1,
        ),
        log_every=config.monitor.log_every,
        cov_histogram_every=config.monitor.cov_histogram_every,
        token_table_every=config.monitor.token_table_every,
        shows_tokens=config.monitor.samples_per_step > 0 and config.monitor.samples_mb > 0,
        max_mismatch=config.weight_sync.max_mismatch,
        max_skipped_updates=config.optimizer.max_skipped_updates,
        log_folder=config.run.directory / "logs",
        last_step=config.run.steps - 1,
        samples_ahead=config.rollout.max_staleness > 0,
        theorem_every=config.monitor.theorem_every,
        theorem_gradient=config.monitor.theorem_gradient,
    )


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


def _make_worker(
    config: RunConfig, vocab_size: int, on_group: Callable[[int], None] | None, stack: ExitStack
) -> RolloutWorker:
    worker = RolloutWorker(config, config.run.directory, vocab_size=vocab_size, on_group=on_group)
    stack.callback(worker.close)
    return worker


def _start_servers(worker: RolloutWorker | None, stack: ExitStack) -> None:
    assert worker
    # Again, now that the folder is locked: servers write to it, so they end before it is unlocked.
    stack.callback(worker.close)
    worker.start_servers()
