"""The common base of all sections of a configuration.

Each field is followed by its description. A number's description ends with its unit in brackets, as in "[tokens]";
error messages and the editor schema repeat it. Numbers are strict, so that `true` is not read as 1.
"""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A frozen mapping of settings; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


def value_type(annotation: Any) -> Any:
    """The type of a set value.

    Args:
        annotation: annotation of a field, such as `int` or `StrictInt | None`.

    Returns:
        The annotation without None and without pydantic's metadata. A union of sections stays as it is.
    """
    if allows_none(annotation):
        (annotation,) = (member for member in get_args(annotation) if member is not NoneType)
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def allows_none(annotation: Any) -> bool:
    """Whether null is a valid value, as for a field annotated `X | None`."""
    return get_origin(annotation) in (Union, UnionType) and NoneType in get_args(annotation)
