"""Decisions that one rank makes and all ranks follow, so that an error on one rank is an error on all."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TypeVar

from megacov import errors
from megacov.errors import MegacovError
from megacov.parallel.collectives import all_gather_bytes, broadcast_bytes
from megacov.parallel.groups import ParallelGroups

T = TypeVar("T")


def on_rank_zero(action: Callable[[], T], groups: ParallelGroups) -> T | None:
    """Call a function on rank 0 while the others wait. If it raises a MegacovError, every rank raises that error.

    Collectives: control: `broadcast_bytes` of a few bytes from rank 0.

    Args:
        action: function to call on rank 0 only.
        groups: process groups of this rank.

    Returns:
        The result of the action on rank 0, None elsewhere.

    Raises:
        MegacovError: the error of the action, with the same message and class of `megacov.errors` on all ranks.
    """
    result, failure, verdict = None, None, None
    if groups.world_rank == 0:
        try:
            result = action()
        except MegacovError as error:
            failure = error
        verdict = json.dumps([_public_name(failure), str(failure)] if failure else None).encode()
    answer = json.loads(broadcast_bytes(verdict, src_rank=0, group=groups.control))
    if failure is not None:
        raise failure
    if answer is not None:
        raise _echo(*answer)
    return result


def on_every_rank(action: Callable[[], T], groups: ParallelGroups) -> T:
    """Call a function on every rank. If it raises a MegacovError on some, every rank raises one.

    Collectives: control: those of `gather`.

    Args:
        action: function without collectives.
        groups: process groups of this rank.

    Returns:
        This rank's result.

    Raises:
        MegacovError: this rank's own error, or else that of the first rank that failed.
    """
    failure = None
    try:
        result = action()
    except MegacovError as error:
        failure = error
    verdicts = gather([_public_name(failure), str(failure)] if failure else None, groups)
    if failure is not None:
        raise failure
    for verdict in verdicts:
        if verdict is not None:
            raise _echo(*verdict)
    return result


def _echo(name: str, sentence: str) -> MegacovError:
    error: MegacovError = getattr(errors, name)(sentence)
    error.is_echo = True
    return error


def _public_name(error: MegacovError) -> str:
    """Name of the error's class, or of its nearest base class in `megacov.errors`, which any rank can raise."""
    return next(kind.__name__ for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)


def from_last_stage(value: T, groups: ParallelGroups) -> T:
    """Send a value from the last pipeline stage to all ranks. All ranks of that stage must hold the same value.

    Collectives: pp: `broadcast_bytes` from the last stage.

    Args:
        value: any JSON value; ignored off the last stage.
        groups: process groups of this rank.

    Returns:
        The last stage's value.
    """
    payload = json.dumps(value).encode() if groups.is_last_stage else None
    received: T = json.loads(broadcast_bytes(payload, src_rank=groups.pp_size - 1, group=groups.pp))
    return received


def from_rank_zero(value: T, groups: ParallelGroups) -> T:
    """Send a value from rank 0 to all ranks.

    Collectives: control: `broadcast_bytes` from rank 0.

    Args:
        value: any JSON value; ignored on other ranks.
        groups: process groups of this rank.

    Returns:
        Rank 0's value.
    """
    payload = json.dumps(value).encode() if groups.world_rank == 0 else None
    received: T = json.loads(broadcast_bytes(payload, src_rank=0, group=groups.control))
    return received


def gather(value: T, groups: ParallelGroups) -> list[T]:
    """Gather a value from every rank on every rank.

    Collectives: control: `all_gather_bytes`.

    Args:
        value: any JSON value.
        groups: process groups of this rank.

    Returns:
        One value per rank, in rank order.
    """
    return [json.loads(text) for text in all_gather_bytes(json.dumps(value).encode(), group=groups.control)]
