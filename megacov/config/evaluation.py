"""Settings of evaluations during training."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, StrictBool, StrictFloat, StrictInt

from megacov.config.section import Section


class EvaluationSection(Section):
    """Evaluations during training, on the rollout servers."""

    suite: str | None = Field(None, min_length=1)
    """YAML file of a suite, or the name of one in yaml_configs/suites; null evaluates nothing."""
    every: StrictInt = Field(10, ge=1)
    """Steps between two evaluations. [steps]"""
    at_start: StrictBool = False
    """Evaluate before the first step as well."""
    data: Path | None = None
    """Folder in which files of sets are looked for before the working folder; null takes the variable MEGACOV_DATA."""
    max_wait_share: StrictFloat = Field(0.1, ge=0, le=1)
    """Longest time that a step waits for an evaluation, as a share of the last step's. [share]"""
    max_concurrency: StrictInt = Field(8, ge=1)
    """Largest number of an evaluation's requests in flight, beside those of the rollout. [requests]"""
    timeout_s: StrictFloat = Field(3600.0, gt=0)
    """Deadline of a whole evaluation, and of the wait for it at the end of the run. [s]"""

    @property
    def names_file(self) -> bool:
        """Whether `suite` is the path of a file, and no name."""
        return self.suite is not None and Path(self.suite).suffix in (".yaml", ".yml")
