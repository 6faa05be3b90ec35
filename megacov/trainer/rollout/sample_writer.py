"""Keeps the responses of a step that people read, and writes them when the step has been trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from megacov.config import RunConfig
from megacov.data.token_texts import TokenTexts
from megacov.monitor.samples import FLAGS, FLOATS, TEXTS
from megacov.monitor.samples_folder import SamplesFolder
from megacov.trainer.rollout.shown_samples import Shown, representative
from megacov.types import Sample

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class _Pending:
    """Responses that wait for the end of their step, and the version of the weights in training."""

    shown: list[Shown]
    version: int


class SampleWriter:
    """Chooses responses of a batch when it is collected and writes them after training. On rank 0 alone.

    The batch of the next step may be sampled meanwhile: it is collected when this step's responses are written.
    """

    def __init__(self, config: RunConfig, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
        """Write nothing yet.

        Args:
            config: the run's configuration.
            folder: run folder.
            tokenizer: tokenizer of the model.
        """
        self._count = config.monitor.samples_per_step
        self._sources = [source.name for source in config.sources]
        self._folder = SamplesFolder(folder, limit_bytes=config.monitor.samples_mb * 10**6)
        self._pending: _Pending | None = None
        self.texts = TokenTexts(tokenizer)

    def metrics(self) -> dict[str, float]:
        """`health/thinned_samples`."""
        return {"health/thinned_samples": self._folder.num_thinned}

    def choose(self, samples: Sequence[Sample], *, version: int) -> list[int]:
        """Choose the responses of a batch, and forget those of an earlier batch that was not trained on.

        Args:
            samples: of the batch, in its order.
            version: version of the weights in training.

        Returns:
            Rows of the rollout batch.
        """
        self._pending = _Pending(representative(samples, self._count), version)
        return [shown.row for shown in self._pending.shown]

    def write(self, values: Tensor | None, *, step: int) -> None:
        """Write the chosen responses; does nothing if they are written, or if there are none.

        Args:
            values: [6, response tokens of all chosen] float on the CPU, in the order of `FLOATS` and `FLAGS`; None for
                texts alone.
            step: step that has trained on them, from 1.

        Raises:
            DataError: the disk refuses it.
        """
        pending, self._pending = self._pending, None
        if pending is None or not pending.shown:
            return
        responses = [self._describe(shown, version=pending.version) for shown in pending.shown]
        if values is not None:
            lengths = [len(shown.sample.completion.token_ids) for shown in pending.shown]
            for response, shown, part in zip(responses, pending.shown, values.split(lengths, dim=1), strict=True):
                response |= {TEXTS: self.texts.of_response(shown.sample.completion.token_ids)} | _token_fields(part)
        self._folder.write(responses, step=step)

    def _describe(self, shown: Shown, *, version: int) -> dict[str, Any]:
        sample, completion = shown.sample, shown.sample.completion
        source = {"source": self._sources[sample.prompt.source]} if len(self._sources) > 1 else {}
        failure = {"failure": sample.failure} if sample.failure is not None else {}
        return (
            source
            | failure
            | {
                "sample": shown.row,
                "prompt": sample.prompt.text,
                "response": completion.text,
                "answer": sample.prompt.answer,
                "reward": sample.reward,
                "notable": list(shown.notable),
                "tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "versions": [str(span.number) for span in completion.version_spans],
                "staleness": max((version - span.number for span in completion.version_spans), default=0),
            }
        )


def _token_fields(values: Tensor) -> dict[str, list[float | None] | list[int]]:
    """Lists for JSON: numbers to four digits, None for those that are not finite."""
    rows = dict(zip((*FLOATS, *FLAGS), values.tolist(), strict=True))
    floats = {name: [float(f"{value:.4g}") if isfinite(value) else None for value in rows[name]] for name in FLOATS}
    return {**floats, **{name: [int(value) for value in rows[name]] for name in FLAGS}}
