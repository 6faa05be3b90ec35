"""Optimizer steps whose gradient is not finite: every rank leaves them out, and the report names where it came from.

Every rank knows from the gradient norm, which it reads anyway. Everything else here runs only after such a step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.errors import NumericsError
from megacov.files import write_atomically
from megacov.megatron.policy import UpdateResult
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import gather
from megacov.trainer.optimizer_step.selection import Selection
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.trainer.state import TrainState
from megacov.types import LossOutput, RolloutBatch

# A broken policy makes everything NaN, so each list in a report has a limit.
_MAX_FINDINGS = 16
_MAX_IDS = 64
_MAX_SAMPLES = 4
_MAX_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """A micro-batch of this rank that holds something not finite.

    micro_batch: its place in the mini-batch.
    sample_ids: affected rows of the rollout batch in ascending order, at most 64 of them.
    num_samples: number of affected rows.
    """

    micro_batch: int
    sample_ids: list[int]
    num_samples: int


def examine_inputs(inputs: Sequence[TokenInputs]) -> tuple[Finding, ...]:
    """Find micro-batches whose inputs to a selection or a loss are not finite. Waits for the device."""
    return tuple(finding for i, part in enumerate(inputs) if (finding := _finding(i, part, _is_bad(part))))


def examine_losses(
    inputs: Sequence[TokenInputs],
    outputs: Sequence[LossOutput],
    log_probs: Mapping[int, Tensor],
    selection: Selection | None,
) -> tuple[Finding, ...]:
    """Find micro-batches whose inputs or losses were not finite in an optimizer step. Waits for the device.

    Args:
        inputs: one record a micro-batch.
        outputs: the loss of each.
        log_probs: [t] of each, as the loss saw them.
        selection: the one that the losses used, or None.

    Returns:
        The samples at fault where they are known, else all kept samples of a micro-batch whose loss is not finite.
    """
    findings = []
    for i, (part, output) in enumerate(zip(inputs, outputs, strict=True)):
        finding = _finding(i, part, _is_bad(part, log_probs[i]))
        # A selection with a NaN score spoils the losses of all ranks; the tokens at fault may be another rank's.
        is_victim = selection is not None and not bool((selection.scores[i].isfinite() | ~part.kept_mask).all())
        if finding is None and not is_victim and not bool(output.loss.isfinite()):
            finding = _finding(i, part, part.kept_mask)
        findings += [] if finding is None else [finding]
    return tuple(findings)


def _is_bad(part: TokenInputs, log_probs: Tensor | None = None) -> Tensor:
    """[t] bool. The policy's own numbers count for tokens without loss, too: if they are not finite, neither is it."""
    policy = [values for values in (part.old_log_probs, part.entropy) if values is not None]
    kept = [part.advantages, part.policy_advantages, part.rollout_log_probs]
    if part.ref_log_probs is not None:
        kept.append(part.ref_log_probs)
    if log_probs is not None:
        policy.append(log_probs)
        if part.old_log_probs is not None:
            kept.append((log_probs - part.old_log_probs).exp())
    is_sound = part.loss_mask.new_ones(part.loss_mask.shape)
    for values in policy:
        is_sound &= values.isfinite()
    for values in kept:
        is_sound &= values.isfinite() | ~part.kept_mask
    return ~is_sound


def _finding(micro_batch: int, part: TokenInputs, where: Tensor) -> Finding | None:
    ids = part.sample_index[where].unique().tolist()
    return Finding(micro_batch, ids[:_MAX_IDS], len(ids)) if ids else None


def without_tokens(selection: Selection) -> Selection:
    """The selection of an optimizer step that was left out, which acted on no token and had no candidates."""
    none = [torch.zeros_like(mask) for mask in selection.masks]
    return replace(selection, masks=none, candidates=none)


class SkippedUpdates:
    """Counts optimizer steps that were left out, reports each, and stops the run when too many follow each other."""

    def __init__(
        self,
        state: TrainState,
        groups: ParallelGroups,
        *,
        max_in_a_row: int,
        log_folder: Path | None = None,
        batch: RolloutBatch | None = None,
    ) -> None:
        """Begin a step.

        Args:
            state: its `skipped_in_a_row` is kept up to date.
            groups: this rank's process groups.
            max_in_a_row: number that the run survives.
            log_folder: where rank 0 writes one file a step; None writes nothing.
            batch: the rollout batch, whose affected samples the file shows.
        """
        self._state, self._groups = state, groups
        self._max_in_a_row = max_in_a_row
        self._batch = batch
        self._file = None if log_folder is None else log_folder / f"not_finite_step_{state.step + 1:06d}.json"
        self._reports: list[dict[str, Any]] = []

    def count(self, result: UpdateResult, findings: Sequence[Finding], *, update: int) -> None:
        """Count an optimizer step, applied or left out.

        Collectives: if it was left out, which all ranks know, control: `gather`.

        Args:
            result: of the optimizer step.
            findings: this rank's.
            update: number of the optimizer step in the run, from 0.

        Raises:
            NumericsError: too many were left out; on every rank, with the same sentence.
        """
        if result.is_applied:
            self._state.skipped_in_a_row = 0
            return
        self._state.skipped_in_a_row += 1
        own = {
            "pipeline_stage": self._groups.pp_rank,
            "own_gradient_is_finite": result.own_gradient_is_finite,
            "findings": [asdict(finding) for finding in findings[:_MAX_FINDINGS]],
        }
        by_rank = [{"rank": rank, **report} for rank, report in enumerate(gather(own, self._groups))]
        in_a_row, limit = self._state.skipped_in_a_row, self._max_in_a_row
        sentence = (
            f"step {self._state.step + 1}, update {update + 1} was left out on all ranks: {_cause(by_rank)} "
            f"(gradient norm {result.grad_norm}); {in_a_row} in a row"
        )
        where = "the rewards and log-probs of this step" if self._file is None else str(self._file)
        if self._groups.world_rank == 0:
            self._write(by_rank, update=update, grad_norm=result.grad_norm)
            if in_a_row <= limit:
                print(f"megacov: warning: {sentence}; see {where}.", file=sys.stderr, flush=True)
        if in_a_row > limit:
            raise NumericsError(
                f"{sentence}, and optimizer.max_skipped_updates is {limit}: look at {where}, or lower optimizer.lr."
            )

    def _write(self, by_rank: Sequence[dict[str, Any]], *, update: int, grad_norm: float) -> None:
        if self._file is None:
            return
        self._reports.append(
            {
                "step": self._state.step + 1,
                "update": update + 1,
                "in_a_row": self._state.skipped_in_a_row,
                "gradient_norm": str(grad_norm),
                "ranks": [r for r in by_rank if r["findings"] or not r["own_gradient_is_finite"]],
                "samples": [self._describe(index) for index in _sample_ids(by_rank)[:_MAX_SAMPLES]],
            }
        )
        try:
            self._file.parent.mkdir(exist_ok=True)
            write_atomically(self._file, json.dumps(self._reports, indent=1) + "\n")
        except OSError as error:
            # The run can continue without its report.
            print(f"megacov: warning: {self._file} cannot be written: {error.strerror}.", file=sys.stderr, flush=True)

    def _describe(self, index: int) -> dict[str, Any]:
        if self._batch is None:
            return {"id": index}
        batch, prompt = self._batch, int(self._batch.prompt_lengths[index])
        return {
            "id": index,
            "group": int(batch.group_ids[index]),
            "reward": float(batch.rewards[index]),
            "prompt_length": prompt,
            "token_ids": batch.tokens[index, : prompt + int(batch.response_lengths[index])].tolist(),
        }


def _sample_ids(by_rank: Sequence[Mapping[str, Any]]) -> list[int]:
    return sorted({index for report in by_rank for finding in report["findings"] for index in finding["sample_ids"]})


def _cause(by_rank: Sequence[dict[str, Any]]) -> str:
    """Which values are not finite, as a clause."""
    bad = [report for report in by_rank if report["findings"]]
    if bad:
        is_cut = any(f["num_samples"] > len(f["sample_ids"]) for report in bad for f in report["findings"])
        samples = _numbered("sample", _sample_ids(bad), is_cut=is_cut)
        micro_batches = sorted({f["micro_batch"] for report in bad for f in report["findings"]})
        where = f"{_numbered('micro-batch', micro_batches)} of {_numbered('rank', [report['rank'] for report in bad])}"
        return f"values of {samples} in {where} are not finite"
    ranks = [report["rank"] for report in by_rank if not report["own_gradient_is_finite"]]
    if ranks:
        return f"every loss is finite, but the gradient is not on {_numbered('rank', ranks)}"
    return "every loss and every rank's gradient is finite, but their sum is not"


def _numbered(noun: str, numbers: Sequence[int], *, is_cut: bool = False) -> str:
    words = [str(number) for number in numbers[:_MAX_NAMED]]
    rest = len(numbers) - len(words)
    if rest > 0 or is_cut:
        words.append("more" if is_cut else f"{rest} more")
    plural = ("es" if noun.endswith("batch") else "s") * (len(words) > 1)
    return f"{noun}{plural} {' and '.join(filter(None, [', '.join(words[:-1]), words[-1]]))}"
