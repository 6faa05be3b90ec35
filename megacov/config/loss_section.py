"""Settings that every policy loss shares, and those of a loss from outside the package."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import ConfigDict, Field, model_validator

from megacov.config.section import Section

FUNCTION_FORM = "package.module:function"
"""Pattern of a name that leads to an imported function."""


class LossSection(Section):
    """The base of every loss's settings."""

    # Whether the loss acts on selected tokens, which a file cannot set; None where only its function knows.
    needs_selection: ClassVar[bool | None] = False

    # The selection that is made for the loss and for no other, which a file cannot set; None for any.
    own_selection: ClassVar[str | None] = None

    # Whether the ratio is taken to the rollout server's log-probs, which a file cannot set.
    is_anchored_at_rollout: ClassVar[bool] = False

    # Whether the loss reads each token's entropy under the old policy, which a file cannot set.
    needs_old_entropy: ClassVar[bool] = False

    # Whether the loss reads each token's log-prob under the filtered old policy, which a file cannot set.
    needs_filtered_old: ClassVar[bool] = False

    name: str
    """The loss; each form fixes its own."""

    def hyperparameters(self) -> dict[str, Any]:
        """The keyword arguments of the loss function: every setting but the name."""
        return self.model_dump(exclude={"name"})


class ImportedLoss(LossSection):
    """A loss that is imported. Its other keys are hyperparameters, checked against its function before ranks start."""

    model_config = ConfigDict(extra="allow")

    needs_selection: ClassVar[bool | None] = None

    # The pattern is for editors alone: a name that does not fit is explained where it is imported.
    name: str = Field(json_schema_extra={"pattern": ":"})
    """The function, as package.module:function."""

    @model_validator(mode="after")
    def _hyperparameters_are_plain(self) -> ImportedLoss:
        for key, value in (self.model_extra or {}).items():
            if value is not None and not isinstance(value, bool | int | float | str):
                raise ValueError(f"{key} is {value!r}: a hyperparameter is a number, true or false, text, or null.")
        return self
