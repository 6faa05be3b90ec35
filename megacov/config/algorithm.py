"""Settings of the algorithm: advantages, the policy loss, and the tokens that a covariance method acts on.

A loss or selector is chosen by `name`; the other keys beside it are its own. Losses are in `megacov/config/losses/`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Union

from pydantic import Discriminator, Field, StrictFloat, StrictInt, Tag, model_validator

from megacov.config.controller import Controller, NoController, controller_form
from megacov.config.loss_section import FUNCTION_FORM, ImportedLoss, LossSection
from megacov.config.losses import LOSS_SECTIONS
from megacov.config.losses.ppo_clip import PpoClipLoss
from megacov.config.section import Section


class AdvantagesSection(Section):
    """Settings that all advantage estimators share."""

    @property
    def has_unit_scale(self) -> bool:
        """Whether the spread of advantages in a group does not depend on the scale of rewards."""
        return False

    def hyperparameters(self) -> dict[str, Any]:
        """The keyword arguments of the estimator: every setting but the name."""
        return self.model_dump(exclude={"name"})


class GroupRelativeAdvantages(AdvantagesSection):
    """Reward minus the mean of the prompt's samples."""

    name: Literal["group_relative"] = "group_relative"
    """Relative to the mean of the prompt's samples; a section without a name means this one."""
    normalize_std: bool = True
    """Divide by the standard deviation of the group's rewards (GRPO); false only subtracts the mean (Dr. GRPO)."""

    @property
    def has_unit_scale(self) -> bool:
        """Whether it divides by the spread of rewards."""
        return self.normalize_std


class RlooAdvantages(AdvantagesSection):
    """Reward minus the mean of the prompt's other samples (arXiv 2402.14740); not divided by their spread."""

    name: Literal["rloo"] = "rloo"
    """Relative to the mean of the prompt's other samples."""


def _advantages_form(value: Any) -> str:
    """The member of `Advantages` that a value is for; files older than the second estimator have no name."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "group_relative" if name is None else str(name)


Advantages = Annotated[GroupRelativeAdvantages, Tag("group_relative")] | Annotated[RlooAdvantages, Tag("rloo")]


def _loss_form(value: Any) -> str | None:
    """The member of `Loss` that a value is for."""
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    if name is None:
        return None
    return FUNCTION_FORM if ":" in str(name) else str(name)


if TYPE_CHECKING:
    # The real union follows from the files of a folder, which a type checker cannot know.
    Loss = LossSection
else:
    Loss = Union[
        *(Annotated[section, Tag(name)] for name, section in LOSS_SECTIONS.items()),
        Annotated[ImportedLoss, Tag(FUNCTION_FORM)],
    ]


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
        """The keyword arguments of the selector: none."""
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
        """The keyword arguments of the selector: every setting that is its own."""
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


class EntropyMaskSection(Section):
    """Which tokens carry the gradient, by their entropy in the whole optimizer step (arXiv 2506.01939)."""

    keep: Literal["all", "high", "low"] = "all"
    """All tokens, those of highest entropy alone, or all but those."""
    ratio: StrictFloat = Field(0.2, gt=0, lt=1)
    """Tokens of highest entropy out of all loss tokens of an optimizer step. [fraction]"""


class RolloutCorrectionSection(Section):
    """Importance weights p_trainer / p_rollout for tokens that the server sampled with slightly other log-probs."""

    level: Literal["none", "token", "sequence", "sequence_mean"] = "none"
    """Weigh each token by its own ratio, or by the product or the geometric mean of its sequence's ratios."""
    mode: Literal["truncate", "mask"] = "truncate"
    """Cut weights at upper, or leave out the tokens whose weight is not between lower and upper."""
    lower: StrictFloat = Field(0.5, ge=0, le=1)
    """Smallest weight that mask lets in. [ratio]"""
    upper: StrictFloat = Field(2.0, ge=1)
    """Largest weight. [ratio]"""


class AlgorithmSection(Section):
    """The policy-gradient algorithm."""

    advantages: Advantages = Field(GroupRelativeAdvantages(), discriminator=Discriminator(_advantages_form))
    """How much better a sample is than the others of its prompt."""
    loss: Loss = Field(PpoClipLoss(), discriminator=Discriminator(_loss_form))
    """The policy loss."""
    selection: (
        NoSelection | KlCovSelection | ClipCovSelection | HighEntropySelection | M2poSelection | BapoSelection
    ) = Field(NoSelection(), discriminator="name")
    """The tokens that the loss treats in its own way."""
    controller: Controller = Field(NoController(), discriminator=Discriminator(controller_form))
    """What makes one of these settings follow the entropy."""
    entropy_mask: EntropyMaskSection = EntropyMaskSection()
    """The tokens that carry the gradient at all."""
    rollout_correction: RolloutCorrectionSection = RolloutCorrectionSection()
    """Importance weights between rollout server and trainer."""
    old_log_probs: Literal["recompute", "rollout"] = "recompute"
    """Ratios are to the trainer's log-probs before the first update, by a pass over what the update itself does not
    tell; or to the server's."""
    aggregation: Literal[
        "token_mean", "sequence_mean_token_mean", "sequence_mean_token_sum", "sequence_sum_constant_norm"
    ] = "token_mean"
    """How token losses become one number; denominators are those of the whole optimizer step."""
    denominator: Literal["all", "kept"] = "all"
    """Tokens that aggregation divides by: all loss tokens, or those that entropy mask and rollout correction keep."""
    aggregation_norm: StrictInt | None = Field(None, ge=1)
    """Denominator of sequence_sum_constant_norm; null for sequences x max_response_length. [tokens]"""
    entropy_coef: StrictFloat = Field(0.0, ge=0)
    """Weight of an entropy bonus. [per nat]"""
    ref_kl_coef: StrictFloat = Field(0.0, ge=0)
    """Weight of the KL to the policy that training began with. [per nat]"""
    ref_kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """Per-token estimate of that KL."""
    ref_kl_max_gap: StrictFloat | None = Field(None, gt=0, le=50)
    """Where the reference gives a token a log-prob higher than the policy's by more than this, k3 grows linearly from
    there, so that a few tokens cannot hold the whole gradient; null for none. [nats]"""

    @model_validator(mode="after")
    def _norm_has_a_reader(self) -> AlgorithmSection:
        if self.aggregation_norm is not None and self.aggregation != "sequence_sum_constant_norm":
            raise ValueError(
                f"aggregation_norm is {self.aggregation_norm} and aggregation is {self.aggregation}, which does not "
                "read it: remove it, or set aggregation to sequence_sum_constant_norm."
            )
        return self

    @model_validator(mode="after")
    def _gap_has_a_reader(self) -> AlgorithmSection:
        if self.ref_kl_max_gap is not None and self.ref_kl_estimator != "k3":
            raise ValueError(
                f"ref_kl_max_gap is {self.ref_kl_max_gap} and ref_kl_estimator is {self.ref_kl_estimator}, which does "
                "not read it: remove it, or set ref_kl_estimator to k3."
            )
        return self

    @model_validator(mode="after")
    def _denominator_has_a_reader(self) -> AlgorithmSection:
        if self.denominator == "kept" and self.aggregation == "sequence_sum_constant_norm":
            raise ValueError(
                "denominator is kept and aggregation is sequence_sum_constant_norm, which divides by a constant: set "
                "denominator to all."
            )
        masks_rollouts = self.rollout_correction.level != "none" and self.rollout_correction.mode == "mask"
        if self.denominator == "kept" and self.entropy_mask.keep == "all" and not masks_rollouts:
            raise ValueError(
                "denominator is kept and no token is left out: set it to all, or set entropy_mask.keep, or "
                "rollout_correction with mode mask."
            )
        return self
