"""Settings of a curriculum by the running accuracy of each prompt."""

from __future__ import annotations

from pydantic import Field, StrictFloat, StrictInt, model_validator

from megacov.config.section import Section


class CurriculumSection(Section):
    """Which prompts are passed over, by the share of right responses that each had so far. Null skips none."""

    low: StrictFloat = Field(0.0, ge=0, le=1)
    """Prompts with a lower running accuracy are too hard and are passed over. [share]"""
    high: StrictFloat = Field(0.9, ge=0, le=1)
    """Prompts with a higher running accuracy are too easy and are passed over. [share]"""
    decay: StrictFloat = Field(0.5, ge=0, lt=1)
    """Weight of the accuracy so far when a group is judged; the group has the rest. [fraction]"""
    right_above: StrictFloat = 0.5
    """A response with a higher reward counts as right. [reward]"""
    min_samples: StrictInt = Field(16, ge=1, lt=2**32)
    """Judged responses before which a prompt is never passed over. [sequences]"""
    revisit_every: StrictInt = Field(4, ge=2, le=2**15)
    """Turns of a prompt outside the band of which it is drawn at one, to see if it has changed. [turns]"""

    @model_validator(mode="after")
    def _band_is_not_empty(self) -> CurriculumSection:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high is {self.high}: raise high above low.")
        return self
