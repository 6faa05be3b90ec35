"""Settings of the selectors: which tokens a loss treats in its own way."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field, StrictFloat, model_validator

from megacov.config.section import Section

Scope = Literal["mini_batch", "rollout_batch", "micro_batch"]
LogProbs = Literal["current", "old"]
Method = Literal["auto", "pass", "deferred", "correction"]

LARGE_RATIO = 0.05
"""A covariance ratio from here on is taken for a percentage."""


class NoSelection(Section):
    """No token is singled out."""

    # Constants, so that a reader of any selection finds them; a file cannot set them.
    scope: ClassVar[Scope] = "mini_batch"
    log_probs: ClassVar[LogProbs] = "old"
    method: ClassVar[Method] = "pass"

    name: Literal["none"] = "none"
    """No selection."""

    def hyperparameters(self) -> dict[str, Any]:
        """The keyword arguments of the selector.

        Returns:
            Nothing.
        """
        return {}


class TokenSelection(Section):
    """Settings that all selectors share."""

    name: str
    """The selector; each form fixes its own."""
    scope: Scope = "mini_batch"
    """The tokens that compete: of the whole optimizer step, of the rollout batch, or of each micro-batch on its own."""
    log_probs: LogProbs = "current"
    """Judge by the policy about to be updated, as `method` finds its log-probs, or by the old one."""
    method: Method = "auto"
    """How later updates get current log-probs in mini_batch scope: by one more forward pass; from the update's own
    forwards, whose backwards wait for the selection and whose activations are kept until then (deferred); or from those
    of an update that selects nothing, whose gradient is then corrected by a second one over the sequences up to their
    last selected token (correction). By default each update defers if the activations fit into memory, else corrects
    if that is known to be cheaper than a pass, and else makes a pass."""

    def hyperparameters(self) -> dict[str, Any]:
        """The keyword arguments of the selector.

        Returns:
            Every setting that is its own.
        """
        return self.model_dump(exclude={"name", "scope", "log_probs", "method", "allow_large_ratio"})


class KlCovSelection(TokenSelection):
    """The tokens of largest covariance."""

    name: Literal["kl_cov"] = "kl_cov"
    """The tokens of largest covariance."""
    ratio: StrictFloat = Field(2e-4, gt=0, le=1)
    """Selected tokens out of all loss tokens in scope; the paper has 2e-3 at 7B and 2e-4 at 32B. [fraction]"""
    min_cov: StrictFloat | None = None
    """Only tokens with a covariance above this are selected, so fewer may be; null for no bound. [nats x advantage]"""
    allow_large_ratio: bool = False
    """Accept a ratio of 0.05 or more, which is otherwise taken for a percentage."""


class ClipCovSelection(TokenSelection):
    """Random tokens whose covariance lies in a band and that PPO's clip does not already cut."""

    name: Literal["clip_cov"] = "clip_cov"
    """Random tokens in a band of covariance."""
    ratio: StrictFloat = Field(2e-4, gt=0, le=1)
    """Selected tokens out of all loss tokens in scope; fewer where the band holds fewer. [fraction]"""
    lower: StrictFloat = 1.0
    """Tokens have a covariance above this. [nats x advantage]"""
    upper: StrictFloat = 5.0
    """Tokens have a covariance below this. [nats x advantage]"""
    allow_large_ratio: bool = False
    """Accept a ratio of 0.05 or more, which is otherwise taken for a percentage."""

    @model_validator(mode="after")
    def _band_is_ordered(self) -> ClipCovSelection:
        if not self.lower < self.upper:
            raise ValueError(f"lower is {self.lower} and upper is {self.upper}: set lower below upper.")
        return self


class HighEntropySelection(TokenSelection):
    """The tokens of highest entropy."""

    name: Literal["high_entropy"] = "high_entropy"
    """The tokens of highest entropy."""
    ratio: StrictFloat = Field(0.2, gt=0, le=1)
    """Selected tokens out of all loss tokens in scope. [fraction]"""


class M2poSelection(TokenSelection):
    """The tokens that M2PO leaves out."""

    name: Literal["m2po"] = "m2po"
    """The tokens that move away from the server's policy and have the largest log-ratio to it."""
    threshold: StrictFloat = Field(0.04, ge=0)
    """Mean square of that log-ratio over the tokens that move away and are left in, at most. [nats^2]"""


class BapoSelection(TokenSelection):
    """The tokens that BAPO clips."""

    name: Literal["bapo"] = "bapo"
    """The tokens beyond a range of ratios that follows the balance of positive and negative tokens."""
    positive_share: StrictFloat = Field(0.5, gt=0, lt=1)
    """The range widens until tokens of positive advantage hold this share of the gradient. [share]"""
    lower_start: StrictFloat = Field(0.6, ge=0, le=1)
    """Lower end of the range at first. [ratio]"""
    lower_end: StrictFloat = Field(0.9, ge=0, le=1)
    """Highest lower end. [ratio]"""
    upper_start: StrictFloat = Field(1.2, ge=1)
    """Upper end of the range at first. [ratio]"""
    upper_end: StrictFloat = Field(3.0, ge=1, le=100)
    """Highest upper end. [ratio]"""
    step: StrictFloat = Field(0.05, ge=0.001)
    """By which an end moves. [ratio]"""

    @model_validator(mode="after")
    def _ends_are_ordered(self) -> BapoSelection:
        for end, first, last in (
            ("lower", self.lower_start, self.lower_end),
            ("upper", self.upper_start, self.upper_end),
        ):
            if first > last:
                raise ValueError(f"{end}_start is {first} and {end}_end is {last}: set the start at or below the end.")
        return self


class SteerSelection(TokenSelection):
    """The weights that STEER gives to tokens."""

    name: Literal["steer"] = "steer"
    """A weight for each token, the smaller the more its own gradient would change the entropy."""
    min_weight: StrictFloat = Field(0.8, gt=0, le=1)
    """Weight of the token with the largest estimated change of entropy. [share]"""
    min_scale: StrictFloat = Field(0.02, gt=0)
    """If that largest change is smaller than this, it counts as this. [nats x advantage]"""


class LpRegSelection(TokenSelection):
    """The tokens that Lp-Reg keeps from vanishing."""

    name: Literal["lp_reg"] = "lp_reg"
    """The least probable tokens of a sign of the advantage."""
    negative_ratio: StrictFloat = Field(0.005, ge=0, le=1)
    """Selected tokens out of those of negative advantage in scope. [fraction]"""
    positive_ratio: StrictFloat = Field(0.0, ge=0, le=1)
    """Selected tokens out of those of positive advantage in scope. [fraction]"""


AnySelection = (
    NoSelection
    | KlCovSelection
    | ClipCovSelection
    | HighEntropySelection
    | M2poSelection
    | BapoSelection
    | SteerSelection
    | LpRegSelection
)
"""Any of them."""
