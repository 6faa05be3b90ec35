"""Responses wait for the end of their step and are then written once, with the values of their tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from megacov.config import load_config
from megacov.data import load_tokenizer
from megacov.errors import DataError
from megacov.monitor.samples import ShownSample, read_samples, sample_files
from megacov.trainer.rollout.sample_writer import SampleWriter
from megacov.types import Completion, Prompt, Sample, VersionSpan


def _sample(group: int, *token_ids: int, reward: float = 0.0) -> Sample:
    completion = Completion(token_ids, (-1.0,) * len(token_ids), "text", "stop", (VersionSpan("4-ab", 0, 1),))
    return Sample(Prompt(7, f"p{group}", (5,), "1"), completion, group, reward)


BATCH = [_sample(0, 5, 14), _sample(0), _sample(1, 6, reward=1.0), _sample(1, 7, 8, 1)]
# Log-probs, entropy, covariance, mismatch, selected, kept of six tokens.
VALUES = torch.arange(36.0).view(6, 6) / 7
VALUES[2, 1], VALUES[0, 5] = torch.nan, -torch.inf
VALUES[4:] = torch.tensor([[0.0, 1, 0, 1, 0, 0], [1.0, 1, 1, 1, 0, 1]])


def _writer(folder: Path, *overrides: str) -> SampleWriter:
    config = load_config("yaml_configs/runs/tiny_grpo.yaml", (f"run.directory={folder}", *overrides))
    (folder / "samples").mkdir(parents=True)
    return SampleWriter(config, folder, load_tokenizer(config.model.path, vocab_size=16))


def _read(folder: Path) -> list[ShownSample]:
    problems: list[str] = []
    samples = list(read_samples(folder, on_problem=problems.append))
    assert [problem for problem in problems if "no values of their tokens" not in problem] == []
    return samples


def test_each_token_has_its_own_values(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    assert writer.choose(BATCH, version=6) == [0, 1, 2, 3]
    assert _read(tmp_path) == []
    writer.write(VALUES, step=5)
    samples = _read(tmp_path)
    assert [(each.sample, each.prompt, each.num_tokens) for each in samples] == [
        (0, "p0", 2),
        (1, "p0", 0),
        (2, "p1", 1),
        (3, "p1", 3),
    ]
    assert all((each.step, each.versions, each.staleness) == (5, ("4",), 2) for each in samples)
    assert samples[2].notable == ("best reward",)
    tokens = [each.tokens for each in samples]
    assert [each.texts for each in tokens if each] == [("1", "+"), (), ("2",), ("3", "4", "<eos>")]
    for place, name in enumerate(("log_probs", "entropy", "covariance", "mismatch", "selected", "kept")):
        joined = torch.cat([torch.tensor(getattr(each, name)).float() for each in tokens])
        expected = torch.where(VALUES[place].isfinite(), VALUES[place], torch.nan)
        torch.testing.assert_close(joined, expected, rtol=6e-4, atol=0, equal_nan=True)


def test_they_are_written_once_and_forgotten_with_the_batch(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.choose(BATCH[:2], version=6)
    writer.choose(BATCH[2:], version=6)  # the batch before was never trained on
    writer.write(None, step=8)
    writer.write(None, step=9)
    assert [(each.step, each.prompt, each.tokens) for each in _read(tmp_path)] == [(8, "p1", None)] * 2
    writer.choose(BATCH[:1], version=7)  # a resumed run repeats the step
    writer.write(VALUES[:, :2], step=8)
    assert [(each.prompt, each.tokens is None) for each in _read(tmp_path)] == [("p0", False)]


def test_no_file_without_responses_and_no_limit_without_megabytes(tmp_path: Path) -> None:
    writer = _writer(tmp_path / "none", "monitor.samples_per_step=0")
    assert writer.choose(BATCH, version=6) == []
    writer.write(None, step=1)
    assert sample_files(tmp_path / "none") == {}
    writer = _writer(tmp_path / "texts", "monitor.samples_mb=0")
    writer.choose(BATCH, version=6)
    writer.write(None, step=1)
    assert len(_read(tmp_path / "texts")) == 4 and writer.metrics() == {"health/thinned_samples": 0}


def test_a_disk_that_refuses_is_named(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    (tmp_path / "samples").rmdir()
    (tmp_path / "samples").touch()
    writer.choose(BATCH, version=6)
    with pytest.raises(DataError, match=r"samples/step_000003\.jsonl cannot be written: File exists\."):
        writer.write(VALUES, step=3)


def test_a_failure_of_the_verifier_is_written_with_every_response_that_has_one(tmp_path: Path) -> None:
    writer = _writer(tmp_path)
    writer.choose([replace(BATCH[0], failure="timeout"), replace(BATCH[2], failure="raised"), BATCH[3]], version=6)
    writer.write(None, step=1)
    assert [each.failure for each in _read(tmp_path)] == ["timeout", "raised", ""]
