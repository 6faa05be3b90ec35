"""Saves checkpoints: rank 0 begins each one, all ranks write it and agree that they have, and rank 0 publishes it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.distributed import ProcessGroup

from megacov.checkpoint.disk import disk_errors
from megacov.checkpoint.manifest import FileRecord
from megacov.checkpoint.store import CheckpointStore
from megacov.errors import CheckpointError
from megacov.files import write_atomically
from megacov.megatron.checkpoint import BackgroundSave, make_save_group, plan_save, write_format
from megacov.megatron.policy import Policy
from megacov.megatron.random_state import random_states, write_random_states
from megacov.parallel.groups import ParallelGroups
from megacov.rollout import dump_carried
from megacov.trainer.agreement import from_rank_zero, gather, on_rank_zero
from megacov.trainer.state import RolloutState, TrainState

TRAINER_FILE = "trainer.json"
CARRIED_FILE = "carried.jsonl"
CURRICULUM_FILE = "curriculum.jsonl"
FORMAT = 1
_POLL_S = 0.05


@dataclass(frozen=True)
class SaveSettings:
    """When a run saves; the fields are those of the configuration's section `checkpoint`."""

    every: int
    keep_last: int
    keep_every: int
    background: bool
    deadline_s: float
    max_failures: int


@dataclass(frozen=True)
class _UnderWay:
    step: int
    save: BackgroundSave
    started: float


class Checkpointer:
    """Saves checkpoints of a run. Every method is a collective of all ranks; a failure on one is a failure on all.

    A failed save leaves the run and older checkpoints unchanged. Rank 0 prints a warning, the failure is counted, and
    the next save is made when it is due.
    """

    def __init__(
        self,
        store: CheckpointStore,
        groups: ParallelGroups,
        settings: SaveSettings,
        *,
        about_run: dict[str, Any],
        rollout_state: Callable[[], RolloutState] = RolloutState,
        last_saved: int | None = None,
        find_run_folder: Callable[[], Path] | None = None,
    ) -> None:
        """Write nothing yet.

        Args:
            store: checkpoints of the run.
            groups: process groups of this rank.
            settings: when to save, and what to keep.
            about_run: record of the run for its checkpoints, as JSON values.
            rollout_state: returns on rank 0 what the next batch continues from; called when a save begins.
            last_saved: step of the checkpoint that the run began with.
            find_run_folder: returns on rank 0 the present path of the run folder, which a user may rename; called when
                a save begins. None keeps that of the store.
        """
        self._store, self._groups, self._settings, self._about_run = store, groups, settings, about_run
        self._rollout_state = rollout_state
        self._last_saved = last_saved
        self._find_run_folder = find_run_folder
        self._under_way: _UnderWay | None = None
        self._group: ProcessGroup | None = None
        self._stuck: BackgroundSave | None = None
        self._failures_in_a_row = 0
        self._waited_s: float | None = None
        self.num_failures = 0

    def after_step(self, policy: Policy, state: TrainState) -> None:
        """Collect the result of a finished save, and begin a save if one is due.

        Args:
            policy: policy after the step.
            state: state of the run after the step.

        Raises:
            CheckpointError: too many saves in a row have failed.
        """
        self._poll()
        if self._settings.every > 0 and state.step % self._settings.every == 0:
            start = time.monotonic()
            self._begin(policy, state)
            if not self._settings.background:
                self._wait()
            self._waited_s = time.monotonic() - start

    def save_now(self, policy: Policy, state: TrainState) -> None:
        """Save this step, unless it has been saved, and wait until the checkpoint is published.

        Args:
            policy: policy after the step.
            state: state of the run after the step.

        Raises:
            CheckpointError: the checkpoint cannot be written.
        """
        if self._settings.every == 0:
            return
        self._wait()
        if self._last_saved == state.step:
            return
        failures = self.num_failures
        self._begin(policy, state)
        self._wait()
        if self.num_failures > failures:
            raise CheckpointError(f"step {state.step} could not be saved: see the warning above.")

    @property
    def run_folder(self) -> Path:
        """Folder of the run that the last save went to; on rank 0 under its present name."""
        return self._store.folder.parent

    def take_metrics(self) -> dict[str, float]:
        """`health/failed_saves`, and `perf/save_s` of a periodic save since the last call."""
        waited = {} if self._waited_s is None else {"perf/save_s": self._waited_s}
        self._waited_s = None
        return {"health/failed_saves": float(self.num_failures), **waited}

    def _begin(self, policy: Policy, state: TrainState) -> None:
        self._wait()
        if self._last_saved == state.step:
            return
        failure, folder, plan = self._still_stuck(), None, None
        if failure is None:
            folder, scratch, failure = self._make_folders(state.step)
        if failure is None:
            assert folder is not None
            try:
                plan = plan_save(policy.chunks, policy.optimizer, folder, scratch=scratch)
            except CheckpointError as error:
                failure = str(error)
            finally:
                if scratch is not None:
                    shutil.rmtree(scratch, ignore_errors=True)
            failure = _first(gather(failure, self._groups))
        if failure is not None or plan is None or folder is None:
            self._failed(state.step, failure or "nothing was planned")
            return
        if self._group is None:
            self._group = make_save_group(deadline_s=self._settings.deadline_s)
        write_more = partial(_write_more, random_states(), self._rollout_state(), self._groups.world_rank)
        about = {**self._about_run, **asdict(state), **policy.progress()}
        publish = partial(self._publish, state.step, about)
        save = BackgroundSave(plan, folder, self._group, write_more=write_more, publish=publish)
        self._under_way = _UnderWay(state.step, save, time.monotonic())

    def _make_folders(self, step: int) -> tuple[Path | None, Path | None, str | None]:
        """Create the folder that all ranks write into, and on rank 0 one for its plan; or give the failure."""

        def begin() -> tuple[str, Path]:
            if self._find_run_folder is not None:
                self._store = CheckpointStore(self._find_run_folder())
            folder = str(self._store.begin(step))
            with disk_errors(Path(tempfile.gettempdir()), "written"):
                return folder, Path(tempfile.mkdtemp(prefix="megacov-plan-"))

        try:
            folder, scratch = on_rank_zero(begin, self._groups) or ("", None)
        except CheckpointError as error:
            return None, None, str(error)
        return Path(from_rank_zero(folder, self._groups)), scratch, None

    def _poll(self) -> None:
        """Collect the result of the save in progress, or give it up if a rank is overdue."""
        if self._under_way is None:
            return
        save, age_s = self._under_way.save, time.monotonic() - self._under_way.started
        is_overdue = age_s > self._settings.deadline_s
        answers = gather((save.is_done, is_overdue and not save.is_done, save.waits_for_others), self._groups)
        failure = _first(gather(save.failure if save.is_done else None, self._groups))
        late = [rank for rank, (_, is_late, _) in enumerate(answers) if is_late]
        if late:
            # Ranks that have written wait for those that have not, and so are late too.
            culprits = [rank for rank, (is_done, _, waits) in enumerate(answers) if not (is_done or waits)] or late
            # The thread and its process group may hang forever, so the next save gets a new group.
            self._stuck, self._group = save, None
            deadline = f"checkpoint.deadline_s={self._settings.deadline_s:g}"
            self._failed(self._under_way.step, f"rank {culprits[0]} has not written its part within {deadline}")
        elif all(is_done for is_done, _, _ in answers):
            if failure is None:
                self._last_saved, self._failures_in_a_row = self._under_way.step, 0
                self._under_way = None
            else:
                self._failed(self._under_way.step, failure)

    def _wait(self) -> None:
        while self._under_way is not None:
            self._under_way.save.wait(timeout_s=_POLL_S)
            self._poll()

    def _still_stuck(self) -> str | None:
        """Check for a thread that hangs in the file system: it could write into the next checkpoint."""
        is_stuck = self._stuck is not None and not self._stuck.is_done
        ranks = [rank for rank, answer in enumerate(gather(is_stuck, self._groups)) if answer]
        return f"rank {ranks[0]} still hangs in an earlier save" if ranks else None

    def _publish(self, step: int, about: dict[str, Any], records: Sequence[FileRecord]) -> None:
        """Publish the checkpoint. Rank 0's background thread calls this once all ranks have written."""
        folder = self._store.temporary(step)
        write_format(folder)
        with disk_errors(folder / TRAINER_FILE, "written"):
            write_atomically(folder / TRAINER_FILE, json.dumps(about, indent=1), is_synced=True)
        self._store.publish(step, records)
        self._store.prune(self._settings.keep_last, self._settings.keep_every)

    def _failed(self, step: int, reason: str) -> None:
        self._under_way = None
        self.num_failures += 1
        self._failures_in_a_row += 1
        sentence = f"step {step} was not saved: {reason.rstrip('.')}."
        if self._groups.world_rank == 0:
            # A hung thread may still write into the folder; the next save removes what it leaves.
            if self._stuck is None or self._stuck.is_done:
                self._store.abandon(step)
            print(f"megacov: warning: {sentence}", flush=True)
        if self._failures_in_a_row > self._settings.max_failures:
            raise CheckpointError(
                f"{self._failures_in_a_row} saves in a row have failed, and checkpoint.max_failures is "
                f"{self._settings.max_failures}; the last: {sentence}"
            )


def _first(reasons: Sequence[str | None]) -> str | None:
    return next((reason for reason in reasons if reason is not None), None)


def _write_more(states: dict[str, Any], rollout: RolloutState, rank: int, folder: Path) -> list[str]:
    names = [random_file(rank)]
    (folder / names[0]).parent.mkdir(exist_ok=True)
    write_random_states(states, folder / names[0])
    if rollout.carried:
        write_atomically(folder / CARRIED_FILE, dump_carried(rollout.carried), is_synced=True)
        names.append(CARRIED_FILE)
    if rollout.accuracies is not None:
        write_atomically(folder / CURRICULUM_FILE, rollout.accuracies.dump(), is_synced=True)
        names.append(CURRICULUM_FILE)
    return names


def random_file(rank: int) -> str:
    """Name of the file in a checkpoint with the random states of a rank."""
    return f"random/rank_{rank:05d}.safetensors"
