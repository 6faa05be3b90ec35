"""The whole run on one screen: join, build or restore, step until done or asked to leave, leave."""

from __future__ import annotations

import gc
import os
import re
from contextlib import suppress

import torch
import torch.distributed as dist

from megacov.config import RunConfig
from megacov.errors import (
    AlarmError,
    CheckpointError,
    ConfigError,
    DataError,
    LeaveRequested,
    MegacovError,
    NumericsError,
    RankError,
    WeightSyncError,
)
from megacov.launch import RankEnvironment
from megacov.launch.memory import keep_freed_memory, spare_collector
from megacov.megatron.process_groups import join_job, lay_out_ranks, leave_job
from megacov.monitor.run_end import explain_end
from megacov.parallel.collectives import any_rank
from megacov.trainer.agreement import from_rank_zero
from megacov.trainer.build import Resumption, Run, opened_run
from megacov.trainer.clock import StepClock
from megacov.trainer.kept_positions import KeptPositions
from megacov.trainer.next_batch import begin_batch
from megacov.trainer.signals import SignalExit, leave_on_signals
from megacov.trainer.step import train_step
from megacov.trainer.where import where_everything_is

# Words in torch.distributed's errors when another rank has died; gloo raises a plain RuntimeError, no DistError.
_LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "timed out")

# Errors that rank 0 raises too, because all ranks share their cause; other errors may be one rank's alone.
_SHARED = (AlarmError, CheckpointError, ConfigError, LeaveRequested, NumericsError, WeightSyncError)


def train_rank(
    config: RunConfig,
    place: RankEnvironment,
    *,
    resumption: Resumption | None = None,
    kept_positions: KeptPositions | None = None,
) -> None:
    """Run this rank from start to end. A collective of all ranks.

    Args:
        config: the resolved configuration, equal on all ranks.
        place: this process's rank, local rank and rendezvous.
        resumption: how to continue from a checkpoint in the run's folder; None begins anew.
        kept_positions: as in `agree_on_kept_positions`.

    Raises:
        MegacovError: an error that a user can cause; marked `is_echo` on ranks that repeat another rank's sentence.
        RankError: another rank died or stopped answering.
    """
    torch.set_num_threads(1)
    try:
        with leave_on_signals() as leaving:
            _train(config, place, leaving, resumption, kept_positions)
    except MegacovError as error:
        if place.rank > 0:
            error.is_echo |= isinstance(error, _SHARED)
            error.args = (f"rank {place.rank}: {error}",)
        raise
    except RuntimeError as error:
        # gloo's messages begin with a place in its source.
        message = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0])[:80]
        if _is_lost_peer(error):
            failure = RankError(f"rank {place.rank} lost another rank ({message}): look at its log.")
        elif _is_broken_device(error):
            failure = RankError(f"rank {place.rank} lost its GPU ({message}).")
        else:
            raise
        if place.rank == 0:
            explain_end(config.run.directory, failure)
        raise failure from error
    finally:
        leave_job()


def _is_lost_peer(error: RuntimeError) -> bool:
    return isinstance(error, dist.DistError) or any(words in str(error) for words in _LOST_PEER)


def _is_broken_device(error: RuntimeError) -> bool:
    """Whether the GPU failed; an assertion in a kernel would fail again on any GPU."""
    return str(error).startswith("CUDA error:") and "device-side assert" not in str(error)


def _be_deterministic() -> None:
    """Ask torch and NCCL for the same bits from the same inputs; call it before anything touches a GPU."""
    os.environ |= {"CUBLAS_WORKSPACE_CONFIG": ":4096:8", "NCCL_ALGO": "Ring", "NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"}
    # A warning, not an error: for some operations torch does not know whether they are deterministic.
    torch.use_deterministic_algorithms(True, warn_only=True)


def _train(
    config: RunConfig,
    place: RankEnvironment,
    leaving: SignalExit,
    resumption: Resumption | None,
    kept_positions: KeptPositions | None,
) -> None:
    parallel = config.parallel
    if config.run.deterministic:
        _be_deterministic()
    join_job(
        backend=parallel.backend,
        timeout_s=parallel.timeout_s,
        rank=place.rank,
        local_rank=place.local_rank,
        world_size=place.world_size,
        init_method=place.init_method,
    )
    if dist.get_backend() == "gloo":  # tensors are in this process's memory
        keep_freed_memory()
    groups = lay_out_ranks(
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        expert=parallel.expert,
        timeout_s=parallel.timeout_s,
        control_timeout_s=parallel.control_timeout_s,
        seed=config.run.seed,
    )
    with opened_run(config, groups, resumption=resumption, kept_positions=kept_positions) as run:
        spare_collector()  # one rank that stops for a collection holds up all others
        if config.checkpoint.every > 0:
            leaving.save_first(grace_s=config.checkpoint.grace_s, interrupt=run.rollout.interrupt)
        while run.state.step < config.run.steps:
            leaving.check()
            _step(run)
            _end_on_alarm(run)
            if any_rank(leaving.asked is not None, group=groups.control):
                run.save_and_leave()
        with run.saved_if_servers_are_lost():
            run.rollout.push_weights(run.policy, version=run.state.weight_version)
        run.finish()
        run.rollout.finish_evaluations()
    if groups.world_rank == 0:
        print("\n".join(where_everything_is(config, run.checkpointer.run_folder)), flush=True)


def _step(run: Run) -> None:
    """Train one step and record it, unless a request to leave interrupts its rollout."""
    try:
        with run.saved_if_servers_are_lost():
            report = train_step(
                run.policy, run.rollout, run.algorithm, run.settings, run.state, clock=run.clock_of_next_step
            )
    except LeaveRequested:
        return
    except (NumericsError, WeightSyncError):  # raised on all ranks
        with suppress(DataError):  # the first error counts; its responses may show the cause
            run.rollout.write_samples(None, step=run.state.step + 1)
        raise
    try:
        _begin_next_batch(run)
    finally:  # a step that was made is recorded, whatever becomes of the next one
        run.rollout.write_samples(report.token_values, step=run.state.step)
        run.record(report)
    run.checkpointer.after_step(run.policy, run.state)
    gc.collect(1)  # on all ranks at once: what the step left in cycles may hold tensors


def _begin_next_batch(run: Run) -> None:
    """Let the servers sample while this step is recorded and saved.

    Colocated servers wait for the next step: until then, the memory of their GPUs is the trainer's.
    """
    run.clock_of_next_step = None
    if run.state.step == run.config.run.steps or run.rollout.is_under_way or run.config.rollout.colocated:
        return
    run.clock_of_next_step = clock = StepClock()
    with run.saved_if_servers_are_lost():
        begin_batch(run.policy, run.rollout, run.state, clock, step=run.state.step)
    clock.pause()


def _end_on_alarm(run: Run) -> None:
    """Save, and end the run, if this step has raised an alarm of monitor.end_on; all ranks do so together.

    An alarm ends a run once: a resumed run continues until the next one is raised.
    """
    config, step = run.config, run.state.step
    if not config.monitor.end_on or step == config.run.steps:
        return
    alarm = None if run.recorder is None else run.recorder.watch.ending
    sentence = from_rank_zero(alarm and alarm.sentence, run.policy.groups)
    if sentence is None:
        return
    run.checkpointer.save_now(run.policy, run.state)
    resume = f"continue with `megacov resume {run.checkpointer.run_folder}`"
    saved = (
        f"step {step} is saved; {resume}" if config.checkpoint.every > 0 else "checkpoint.every is 0: nothing is saved"
    )
    raise AlarmError(f"{sentence} monitor.end_on ends the run ({saved}).")
