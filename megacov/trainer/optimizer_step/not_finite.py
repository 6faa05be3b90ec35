"""An update whose gradient is not finite: all ranks leave it out, say whose fault it is, and stop if it goes on.

Every rank reads the gradient norm anyway, and knows it from there. All that follows is done only then.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megacov.errors import NumericsError
from megacov.megatron.policy import UpdateResult
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import gather
from megacov.trainer.optimizer_step.selection import Selection
from megacov.trainer.optimizer_step.token_inputs import TokenInputs
from megacov.trainer.state import TrainState
from megacov.types import LossOutput, RolloutBatch

# A broken policy makes everything NaN: what is sent, written and said of it has a limit each.
_MAX_FINDINGS = 16
_MAX_IDS = 64
_MAX_SAMPLES = 4
_MAX_SAID = 5


@dataclass(frozen=True)
class Finding:
    """Something that is not finite in one micro-batch of one rank.

    micro_batch: its index on this rank, in the optimizer step.
    quantity: what it is.
    sample_ids: the samples it belongs to, by index in the rollout batch; at most 64, in order.
    num_samples: how many they are.
    """

    micro_batch: int
    quantity: str
    sample_ids: list[int]
    num_samples: int


def examine_inputs(inputs: Sequence[TokenInputs]) -> tuple[Finding, ...]:
    """Look for what is not finite in what a selection rests on. Waits for the device.

    Args:
        inputs: of the micro-batches of this rank.

    Returns:
        What was found.
    """
    return tuple(finding for index, part in enumerate(inputs) for finding in _examine(index, part, None))


def examine_loss(
    inputs: Sequence[TokenInputs],
    outputs: Sequence[LossOutput],
    log_probs: Mapping[int, Tensor],
    selection: Selection | None,
) -> tuple[Finding, ...]:
    """Look for what was not finite in the losses of an optimizer step. Waits for the device.

    Args:
        inputs: of the micro-batches of this rank.
        outputs: their losses.
        log_probs: [t] of each, as its loss saw them.
        selection: that the losses used, or None.

    Returns:
        What was found: tokens where possible, else all samples of a micro-batch whose loss is not finite.
    """
    findings = []
    for index, (part, output) in enumerate(zip(inputs, outputs, strict=True)):
        found = list(_examine(index, part, log_probs[index]))
        # A selection that went wrong takes every loss with it; the tokens that spoiled it may be another rank's.
        is_victim = selection is not None and not bool((selection.scores[index].isfinite() | ~part.kept).all())
        if not found and not is_victim and not bool(output.loss.isfinite()):
            found = [_finding(index, "losses", part, part.kept)]
        findings += found
    return tuple(findings)


def _examine(index: int, part: TokenInputs, log_probs: Tensor | None) -> Iterator[Finding]:
    # Log-probs of tokens without loss are looked at too: if they are not finite, neither is the policy.
    bad = {
        "old log-probs": ~part.old_log_probs.isfinite(),
        "entropies": ~part.entropy.isfinite(),
        "advantages": part.kept & ~(part.advantages.isfinite() & part.policy_advantages.isfinite()),
    }
    if part.ref_log_probs is not None:
        bad["reference log-probs"] = part.kept & ~part.ref_log_probs.isfinite()
    if log_probs is not None:
        bad = {"log-probs": ~log_probs.isfinite(), **bad}
        ratios = (log_probs - part.old_log_probs).exp()
        bad["ratios to the old policy"] = part.kept & ~(bad["log-probs"] | bad["old log-probs"] | ratios.isfinite())
    for name, where in bad.items():
        if bool(where.any()):
            yield _finding(index, name, part, where)


def _finding(index: int, quantity: str, part: TokenInputs, where: Tensor) -> Finding:
    ids = part.sample_index[where].unique().tolist()
    return Finding(index, quantity, ids[:_MAX_IDS], len(ids))


class SkippedUpdates:
    """Counts updates that were left out, reports each, and stops the run when there are too many in a row."""

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
            state: where the run stands; `skipped_in_a_row` is kept here.
            groups: of this rank.
            max_in_a_row: that the run survives.
            log_folder: where rank 0 writes what is known, a file a step; None for nowhere.
            batch: the rollout batch, of which the file shows the samples that are to blame.
        """
        self._state, self._groups = state, groups
        self._max_in_a_row = max_in_a_row
        self._batch = batch
        self._file = None if log_folder is None else log_folder / f"not_finite_step_{state.step + 1:06d}.json"
        self._reports: list[dict[str, Any]] = []

    def count(self, result: UpdateResult, findings: Sequence[Finding], *, update: int) -> None:
        """Take note of an update, left out or not.

        Collectives: if it was left out, control: `gather`. All ranks know that, and agree.

        Args:
            result: of the update.
            findings: of this rank.
            update: its number in the run, from 0.

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
        by_rank = [{"rank": rank, **told} for rank, told in enumerate(gather(own, self._groups))]
        in_a_row, limit = self._state.skipped_in_a_row, self._max_in_a_row
        said = (
            f"step {self._state.step + 1}, update {update + 1} was left out on all ranks: {_cause(by_rank)} "
            f"(gradient norm {result.grad_norm}); {in_a_row} in a row"
        )
        is_too_many = in_a_row > limit
        where = "the rewards and log-probs of this step" if self._file is None else str(self._file)
        if self._groups.world_rank == 0:
            self._write(by_rank, update=update, grad_norm=result.grad_norm)
            if not is_too_many:
                print(f"megacov: warning: {said}; see {where}.", file=sys.stderr, flush=True)
        if is_too_many:
            raise NumericsError(
                f"{said}, and optimizer.max_skipped_updates is {limit}: look at {where}, or lower optimizer.lr."
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
                "ranks": [told for told in by_rank if told["findings"] or not told["own_gradient_is_finite"]],
                "samples": [self._describe(index) for index in _sample_ids(by_rank)[:_MAX_SAMPLES]],
            }
        )
        try:
            self._file.write_text(json.dumps(self._reports, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            # A report is no reason to stop a run that goes on without it.
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


def without_tokens(selection: Selection) -> Selection:
    """The selection of an update that was left out, which acted on nothing.

    Args:
        selection: as it was made.

    Returns:
        The same micro-batches, with no token selected and none that could have been.
    """
    none = [torch.zeros_like(mask) for mask in selection.masks]
    return replace(selection, masks=none, candidates=none)


def _sample_ids(by_rank: Iterable[Mapping[str, Any]]) -> list[int]:
    return sorted({index for told in by_rank for finding in told["findings"] for index in finding["sample_ids"]})


def _cause(by_rank: Sequence[dict[str, Any]]) -> str:
    """What is not finite, as a clause."""
    blamed = [told for told in by_rank if told["findings"]]
    if blamed:
        findings = [finding for told in blamed for finding in told["findings"]]
        names = _joined(list(dict.fromkeys(finding["quantity"] for finding in findings)))
        is_cut = any(finding["num_samples"] > len(finding["sample_ids"]) for finding in findings)
        samples = _numbered("sample", _sample_ids(blamed), is_cut=is_cut)
        return f"{names} of {samples} on {_numbered('rank', [told['rank'] for told in blamed])} are not finite"
    ranks = [told["rank"] for told in by_rank if not told["own_gradient_is_finite"]]
    if ranks:
        return f"no sample is to blame, but the gradient is not finite on {_numbered('rank', ranks)}"
    return "no sample and no rank is to blame, but the gradients together are not finite"


def _joined(words: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def _numbered(noun: str, numbers: Sequence[int], *, is_cut: bool = False) -> str:
    words = [str(number) for number in numbers[:_MAX_SAID]]
    rest = len(numbers) - len(words)
    if rest > 0 or is_cut:
        words.append("more" if is_cut else f"{rest} more")
    return f"{noun}{'s' * (len(words) > 1)} {_joined(words)}"
