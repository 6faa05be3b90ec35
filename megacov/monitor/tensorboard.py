"""Writes a run's metrics for TensorBoard under declared tags only, and lays out a page for entropy and reward."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from torch.utils.tensorboard import SummaryWriter

from megacov.errors import DataError
from megacov.monitor.custom_scalars import lay_out
from megacov.monitor.event_files import cut_event_files
from megacov.monitor.tag import Kind, Tag
from megacov.monitor.tags import TAGS

if TYPE_CHECKING:
    from types import TracebackType

    from torch import Tensor

    from megacov.monitor.covariance_metrics import Histogram


_CONFIG_TAG = "run/config"

_inherited_hook = threading.excepthook


class MetricWriter:
    """One TensorBoard event file with a custom-scalars page. Only rank 0 has a writer.

    Args:
        directory: folder of the event file, created if it is missing.
        first_step: first step of a resumed run; later points of earlier writers are removed. None for a new run.
        extra_tags: tags beside those of every run, such as an imported loss's metrics.
        without: beginnings of tags that the run does not write; the page has no charts of them.

    Raises:
        DataError: the directory cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        first_step: int | None = None,
        extra_tags: Iterable[Tag] = (),
        without: Collection[str] = (),
    ) -> None:
        self._directory = directory
        self._page = lay_out(without=without)
        self._tags = {tag.name: tag for tag in extra_tags} | TAGS
        self._is_broken = False
        threading.excepthook = _report_thread_failure
        with self._disk():
            if first_step is not None:
                for problem in cut_event_files(directory, first_step=first_step, config_tag=_CONFIG_TAG):
                    print(f"megacov: warning: {problem}", file=sys.stderr, flush=True)
            # For `tensorboard --load_fast=false` that already runs: it forgets what it has read from this step on. It
            # ignores the first request of this kind in a folder, hence the one of a new run.
            self._writer = SummaryWriter(str(directory), purge_step=first_step or 0)
            self._writer.add_custom_scalars(self._page)
        self._steps_before = 0 if first_step is None else first_step - 1

    def write_scalars(self, scalars: Mapping[str, float | Tensor], *, step: int) -> None:
        """Write numbers of one step. Waits for the device if one of them is a tensor there.

        Args:
            scalars: value by tag; tensors hold one element.
            step: steps that the run has finished.

        Raises:
            DataError: writing fails.
        """
        with self._disk():
            for tag, value in scalars.items():
                self._check_tag(tag, "scalar")
                self._writer.add_scalar(tag, float(value), step)

    def write_histogram(self, tag: str, histogram: Histogram, *, step: int) -> None:
        """Write a histogram of one step.

        Args:
            tag: a tag declared as a histogram.
            histogram: counts by bin.
            step: steps that the run has finished.

        Raises:
            DataError: writing fails.
        """
        self._check_tag(tag, "histogram")
        with self._disk():
            self._writer.add_histogram_raw(
                tag,
                min=histogram.minimum,
                max=histogram.maximum,
                num=sum(histogram.counts),
                sum=histogram.total,
                sum_squares=histogram.total_squares,
                bucket_limits=histogram.limits,
                bucket_counts=histogram.counts,
                global_step=step,
            )

    def write_markdown(self, tag: str, text: str, *, step: int) -> None:
        """Write a text of one step; raises DataError if that fails.

        Args:
            tag: a tag declared as a text.
            text: Markdown.
            step: steps that the run has finished.
        """
        self._check_tag(tag, "text")
        with self._disk():
            self._writer.add_text(tag, text, global_step=step)

    def write_config(self, text: str) -> None:
        """Show a YAML configuration on the text page, at the last step before this writer's; raises DataError."""
        self._check_tag(_CONFIG_TAG, "text")
        with self._disk():
            # Markdown shows lines indented by four spaces unchanged.
            lines = "".join(f"    {line}\n" for line in text.splitlines())
            self._writer.add_text(_CONFIG_TAG, lines, global_step=self._steps_before)

    def flush(self) -> None:
        """Hand everything written so far to the operating system; raises DataError if that fails."""
        with self._disk():
            self._writer.flush()

    def close(self) -> None:
        """Flush and close; raises DataError if that fails. Does nothing after a failure that was already raised."""
        if not self._is_broken:
            with self._disk():
                self._writer.close()

    def __enter__(self) -> MetricWriter:
        """This writer."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def reopen_if_deleted(self) -> bool:
        """Begin another event file if somebody has deleted the folder; what it held is lost.

        Returns:
            Whether it was deleted.

        Raises:
            DataError: the folder cannot be made again.
        """
        if self._is_broken or any(self._directory.glob("events.out.tfevents.*")):
            return False
        print(f"megacov: warning: {self._directory} was deleted: it is made again, without earlier steps.", flush=True)
        with suppress(OSError):
            self._writer.close()
        with self._disk():
            self._writer = SummaryWriter(str(self._directory))
            self._writer.add_custom_scalars(self._page)
        return True

    def _check_tag(self, tag: str, kind: Kind) -> None:
        assert tag in self._tags, f"{tag} is not declared in megacov/monitor/tags.py"
        assert self._tags[tag].kind == kind, f"{tag} is declared as a {self._tags[tag].kind}, not as a {kind}"

    @contextmanager
    def _disk(self) -> Iterator[None]:
        """Turn a disk failure into an error for the user. An earlier write may have caused it."""
        try:
            yield
        except OSError as error:
            self._is_broken = True
            reason = error.strerror or str(error)
            raise DataError(
                f"TensorBoard events cannot be written to {self._directory} ({reason}): free space there, or choose"
                " another run.directory."
            ) from error


def _report_thread_failure(failure: threading.ExceptHookArgs) -> None:
    """Ignore disk failures in TensorBoard's own thread: the next write raises them, and they are reported there."""
    is_writer = type(failure.thread).__module__ == "tensorboard.summary.writer.event_file_writer"
    if not (is_writer and issubclass(failure.exc_type, OSError)):
        _inherited_hook(failure)
