"""Writes and shows what a run has done, on rank 0: events, status, alarms, tables of tokens, lines on the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

from megacov.config import RunConfig, dump_config
from megacov.monitor.entropy_law import read_conditions
from megacov.monitor.source_metrics import source_tags
from megacov.monitor.status_file import StatusFile
from megacov.monitor.tags import metric_tags
from megacov.monitor.tensorboard import MetricWriter
from megacov.monitor.token_table import TokenTables, render_markdown
from megacov.trainer.algorithm import Algorithm
from megacov.trainer.first_steps import first_step_warning
from megacov.trainer.progress import ProgressReport
from megacov.trainer.step import StepReport
from megacov.trainer.watch import Watch


@dataclass(frozen=True)
class Recorder:
    """Records the finished steps of a run.

    writer: TensorBoard's events.
    status: file that `megacov status` reads.
    progress: lines and bars on the terminal.
    watch: the entropy law and the alarms.
    tables: tables of tokens.
    """

    config: RunConfig
    writer: MetricWriter
    status: StatusFile
    progress: ProgressReport
    watch: Watch
    tables: TokenTables
    _saves: dict[str, float] = field(default_factory=dict, init=False)

    def record(self, report: StepReport, *, step: int, saves: dict[str, float]) -> None:
        """Write and show a finished step.

        Args:
            report: of the step.
            step: number of the step, from 1.
            saves: metrics of checkpoints, since the last call; a step that is not logged leaves them to the next.

        Raises:
            DataError: the disk refuses it.
        """
        if self.writer.reopen_if_deleted():
            self.writer.write_config(dump_config(self.config))
        self._saves.update(saves)
        if step % self.config.monitor.log_every == 0:
            scalars = report.metrics | self._saves
            self._saves.clear()
            self.writer.write_scalars(scalars, step=step)
            self.status.add_step(step, report.metrics)
            self.watch.add_step(step, scalars)
        if report.histogram is not None:
            self.writer.write_histogram("cov/histogram", report.histogram, step=step)
        if report.vocabulary is not None:
            table = self.tables.add(report.vocabulary, step=step)
            self.writer.write_markdown("cov_by_token/table", render_markdown(table), step=step)
        self.writer.flush()
        self.progress.step(step, report.metrics)
        warning = first_step_warning(self.config, report.metrics, step=step)
        if warning is not None:
            print(f"megacov: warning: {warning}", file=sys.stderr)


def open_recorder(
    config: RunConfig,
    algorithm: Algorithm,
    progress: ProgressReport,
    stack: ExitStack,
    *,
    first_step: int | None,
    text_of_token: Callable[[int], str],
) -> Recorder:
    """Open what a run writes to its folder.

    Args:
        config: the resolved configuration.
        algorithm: its loss declares metrics.
        progress: lines and bars, entered here.
        stack: closes everything.
        first_step: first step of a resumed run, from 1; None for a new one.
        text_of_token: text of a token id.

    Returns:
        The recorder, before its first step.

    Raises:
        DataError: the run folder cannot be written.
    """
    folder = config.run.directory
    tags = metric_tags(algorithm.loss.metrics) + source_tags([source.name for source in config.sources])
    is_refused = any(reason.refuses for reason in read_conditions(config.model_dump(mode="json")))
    without = (*(["law/"] if is_refused else []), *(["control/"] if algorithm.control is None else []))
    writer = stack.enter_context(
        MetricWriter(folder / "tensorboard", first_step=first_step, extra_tags=tags, without=without)
    )
    status = StatusFile(folder, name=config.run.name, num_steps=config.run.steps, first_step=first_step)
    writer.write_config(dump_config(config))
    watch = Watch(config, writer, first_step=first_step)
    tables = TokenTables(folder, text_of=text_of_token, first_step=first_step)
    stack.enter_context(progress)
    return Recorder(config, writer, status, progress, watch, tables)
