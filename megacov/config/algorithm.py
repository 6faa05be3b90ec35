"""Settings of the algorithm: advantages, the policy loss, and the tokens that a covariance method acts on.

A loss or selector is chosen by `name`; the other keys beside it are its own. Losses are in `megacov/config/losses/`,
selectors in `megacov/config/selections.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Union

from pydantic import Discriminator, Field, StrictFloat, StrictInt, Tag, model_validator

from megacov.config.controller import Controller, NoController, controller_form
from megacov.config.loss_section import FUNCTION_FORM, ImportedLoss, LossSection
from megacov.config.losses import LOSS_SECTIONS
from megacov.config.losses.ppo_clip import PpoClipLoss
from megacov.config.section import Section
from megacov.config.selections import AnySelection, NoSelection


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


class MaxEntropySection(Section):
    """Maximum-entropy RL (arXiv 1704.06440): each token earns the policy's entropy, beside the verifier's reward."""

    coef: StrictFloat = Field(0.0, ge=0)
    """What a nat of entropy adds to an advantage, in the unit of advantages; 0 for nothing. [per nat]"""
    discount: StrictFloat = Field(0.99, ge=0, le=1)
    """Weight of the entropy one token later, for which a token is credited too; 0 for its own alone. [ratio]"""


class AlgorithmSection(Section):
    """The policy-gradient algorithm."""

    advantages: Advantages = Field(GroupRelativeAdvantages(), discriminator=Discriminator(_advantages_form))
    """How much better a sample is than the others of its prompt."""
    loss: Loss = Field(PpoClipLoss(), discriminator=Discriminator(_loss_form))
    """The policy loss."""
    selection: AnySelection = Field(NoSelection(), discriminator="name")
    """The tokens that the loss treats in its own way."""
    controller: Controller = Field(NoController(), discriminator=Discriminator(controller_form))
    """What makes one of these settings follow the entropy."""
    entropy_mask: EntropyMaskSection = EntropyMaskSection()
    """The tokens that carry the gradient at all."""
    max_entropy: MaxEntropySection = MaxEntropySection()
    """Entropy as a reward."""
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
