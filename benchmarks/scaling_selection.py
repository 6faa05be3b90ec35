"""What the exact selection costs the trainer on paper, by where its current log-probs come from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from benchmarks.scaling_step import Run, trainings
from benchmarks.scaling_trainer import TrainerSeconds, Training, Work, defers, fullest_rank, train_seconds
from megacov.plan.activations import Recompute

HEADING = (
    *("trainer's GPUs", "log-probs from", "recomputed", "layout", "positions", "fit", "kept"),
    *("selection", "of training", "training"),
)
_GIB = 2**30
_WAYS: tuple[tuple[str, Recompute | None], ...] = (
    ("a pass", "none"),
    ("a pass", "full"),
    ("deferred", None),
    ("correction", "none"),
    ("correction", "full"),
)
CORRECTED_SHARE = 0.075
"""`benchmarks.correction_share` at the median length of the run and its ratio, 2e-4."""


def work_of(run: Run, training: Training) -> Work:
    """The work of the busiest rank in the optimizer step with most tokens."""
    lengths = run.sequences[:: run.plan.batch.updates]
    return fullest_rank(lengths, data=training.layout.data, micro_batch_tokens=training.micro_batch_tokens)


def fastest(
    run: Run, gpus: int, suits: Callable[[Training], bool], *, share: float | None = None
) -> tuple[TrainerSeconds, Training] | None:
    """The fastest layout of so many GPUs among those that suit, with corrections of a share; None if there is none."""
    lengths = run.sequences[:: run.plan.batch.updates]
    ways = [replace(one, corrected_share=share) for one in trainings(run, gpus) if suits(one)]
    found = [(train_seconds(run.model, run.given, one, lengths), one) for one in ways]
    return min(found, key=lambda pair: pair[0].total, default=None)


def selection_rows(run: Run, sizes: Sequence[int]) -> Iterator[Sequence[str]]:
    """Rows for each size of the trainer: a pass and a correction, with and without recomputation; deferred backwards.

    Args:
        run: the run to simulate.
        sizes: numbers of the trainer's GPUs.

    Yields:
        Cells of the columns of HEADING; a way that no layout allows has none.
    """
    passing = replace(run, may_defer=False)
    for gpus in sizes:
        for way, recompute in _WAYS:
            if recompute is None:
                best = fastest(run, gpus, lambda one: defers(one, work_of(run, one)))
            else:
                share = CORRECTED_SHARE if way == "correction" else None
                best = fastest(passing, gpus, lambda one, wanted=recompute: one.recompute == wanted, share=share)
            if best is not None:
                yield _row(run, gpus, way, *best)


def _row(run: Run, gpus: int, way: str, seconds: TrainerSeconds, training: Training) -> Sequence[str]:
    layout = training.layout
    positions = -(-work_of(run, training).tokens // layout.context)
    is_deferred = way == "deferred"
    context = f" CP {layout.context}" if layout.context > 1 else ""
    return (
        str(gpus),
        way,
        {"none": "nothing", "full": "layers", "selective": "attention"}[training.recompute],
        f"TP {layout.tensor} PP {layout.pipeline}{context} DP {layout.data}",
        f"{positions:,}",
        f"{training.room:,}" if is_deferred else "",
        f"{positions * training.position_bytes / _GIB:.1f} GiB" if is_deferred else "",
        f"{seconds.selection:.2f}",
        f"{seconds.selection / seconds.total:.1%}",
        f"{seconds.total:.1f}",
    )
