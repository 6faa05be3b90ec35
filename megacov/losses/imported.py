"""Losses that somebody else has written: found by "package.module:function", and checked before they are used."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from megacov.config.messages import first_sentence
from megacov.config.section import Section
from megacov.errors import ConfigError
from megacov.functions import import_function
from megacov.losses.loss import Loss, TokenLosses, policy_loss
from megacov.types import LossBatch

_SETTING = "algorithm.loss.name"
_KINDS = (bool, int, float, str)


class _Hyperparameters(Section):
    # As everywhere in a configuration, `true` is not read as 1, nor "3" as 3.
    model_config = ConfigDict(strict=True)


def import_loss(name: str) -> Loss:
    """Import a loss: one that `policy_loss` has made, or a plain function, which then declares nothing.

    Args:
        name: "package.module:function".

    Returns:
        The loss, under that name.

    Raises:
        ConfigError: there is no such function, or its signature is not that of a loss.
    """
    found = import_function(name, setting=_SETTING)
    if not isinstance(found, Loss):
        if not inspect.isfunction(found):
            raise ConfigError(f"{_SETTING}: {name!r} should point to a function, and is a {type(found).__name__}.")
        found = policy_loss()(found)
    loss = replace(found, name=name)
    hyperparameters_of(loss)
    return loss


def hyperparameters_of(loss: Loss) -> dict[str, tuple[Any, Any]]:
    """The hyperparameters of a loss, read off the signature of its equation.

    Args:
        loss: any.

    Returns:
        Type and default by name.

    Raises:
        ConfigError: the signature is not fn(batch, *, name: type = default, ...).
    """
    function = loss.token_losses
    parameters = list(inspect.signature(function).parameters.values())
    others = parameters[1:]
    is_first_given = any(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters[:1])
    strays = [other.name for other in others if other.kind is not other.KEYWORD_ONLY or other.default is other.empty]
    if not is_first_given or strays:
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} has the signature {inspect.signature(function)}: it must take the batch, and "
            "each hyperparameter by keyword alone, with a default, as in (batch, *, alpha: float = 0.1)."
        )
    reserved = [o.name for o in others if o.name == "name" or o.name.startswith("_") or hasattr(BaseModel, o.name)]
    if reserved:
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} has hyperparameters named {', '.join(reserved)}, which a section cannot hold: "
            "rename them."
        )
    types = _types_of(function, loss.name)
    wrong = [other.name for other in others if not _is_plain(types.get(other.name))]
    if wrong:
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} has hyperparameters without a plain type ({', '.join(wrong)}): annotate each "
            "with bool, int, float, str or a Literal, or with one of these or None."
        )
    return {other.name: (types[other.name], other.default) for other in others}


def _types_of(function: Callable[..., TokenLosses], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise ConfigError(f"{_SETTING}: the annotations of {name!r} cannot be read ({error}): correct them.") from error


def _is_plain(kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        plain = [member for member in get_args(kind) if member is not type(None)]
        return len(plain) == 1 and _is_plain(plain[0])
    return kind in _KINDS or get_origin(kind) is Literal


def check_hyperparameters(loss: Loss, given: Mapping[str, Any]) -> None:
    """Check values against a loss's signature, with the sentences of a configuration's other mistakes.

    Args:
        loss: any.
        given: values by name.

    Raises:
        ConfigError: a name that the loss does not have, or a value of another type.
    """
    section = create_model("ImportedHyperparameters", __base__=_Hyperparameters, **hyperparameters_of(loss))  # type: ignore[call-overload]
    # So that a message names algorithm.loss.KEY.
    algorithm = create_model("ImportedAlgorithm", __base__=Section, loss=(section, ...))
    root = create_model("ImportedRoot", __base__=Section, algorithm=(algorithm, ...))
    try:
        root.model_validate({"algorithm": {"loss": dict(given)}})
    except ValidationError as error:
        raise ConfigError(first_sentence(error, root)) from None


def try_loss(loss: Loss, hyperparameters: Mapping[str, Any]) -> None:
    """Call a loss on a few tokens, so that what it gets wrong shows before ranks start.

    Args:
        loss: any.
        hyperparameters: checked ones.

    Raises:
        ConfigError: the loss fails, yields something else than a loss per token or an undeclared metric, its losses do
            not depend on log_probs, or it or its gradient is not finite.
    """
    for batch in (_few_tokens(loss), _few_tokens(loss, is_on_policy=True), _few_tokens(loss, is_masked=True)):
        _try_batch(loss, batch, hyperparameters)
    _try_batch(loss, _no_tokens(loss), hyperparameters)


def _try_batch(loss: Loss, batch: LossBatch, hyperparameters: Mapping[str, Any]) -> None:
    try:
        tokens = loss.token_losses(batch, **hyperparameters)
        if not isinstance(tokens, TokenLosses):
            raise ConfigError(
                f"{_SETTING}: {loss.name!r} returns a {type(tokens).__name__}: return TokenLosses(losses, metrics)."
            )
        strays = [
            type(values).__name__ for values in (tokens.losses, *tokens.metrics.values()) if not _is_tensor(values)
        ]
        if strays:
            raise ConfigError(f"{_SETTING}: {loss.name!r} yields a {strays[0]}: return tensors, one value a token.")
        output = loss(batch, **hyperparameters)
        # A selection asks which tokens are clipped before there is a selection, an entropy or a sum.
        loss.clipped(
            replace(batch, selected=None, entropy=None, old_entropy=None, sequence_index=None), **hyperparameters
        )
        gradient = None
        if output.loss.requires_grad:
            (gradient,) = torch.autograd.grad(output.loss, batch.log_probs, allow_unused=True)
    except ConfigError:
        raise
    except Exception as error:
        # A user's function can fail in any way, and say so in many lines.
        reason = " ".join(str(error).split())
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} failed on a batch of {len(batch.log_probs)} tokens with "
            f"{type(error).__name__}: {reason}."
        ) from error
    if tokens.losses.shape != batch.log_probs.shape:
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} yields losses of shape {list(tokens.losses.shape)} for "
            f"{list(batch.log_probs.shape)} tokens: return one loss a token, neither summed nor averaged."
        )
    others = [name for name, values in tokens.metrics.items() if values.shape != batch.log_probs.shape]
    if others:
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} yields {', '.join(others)} with another shape than "
            f"{list(batch.log_probs.shape)}: return one value a token."
        )
    if gradient is None:
        raise ConfigError(
            f"{_SETTING}: the losses of {loss.name!r} do not depend on batch.log_probs: nothing to train."
        )
    if not (output.loss.isfinite() and gradient.isfinite().all()):
        raise ConfigError(
            f"{_SETTING}: {loss.name!r} has a loss or gradient that is not finite on tokens whose log-probs are: every "
            "optimizer step would be left out."
        )


def _is_tensor(values: object) -> bool:
    return isinstance(values, torch.Tensor)


def _few_tokens(loss: Loss, *, is_on_policy: bool = False, is_masked: bool = False) -> LossBatch:
    """Two sequences of two kept tokens and one masked one, with the fields that every such loss is given."""
    old_log_probs = torch.tensor([-0.3, -0.9, -3.0, -0.4, -0.3, -2.0])
    log_probs = old_log_probs.clone() if is_on_policy else torch.tensor([-0.2, -1.0, -3.0, -0.5, -0.1, -2.0])
    kept_mask = torch.tensor([True, True, False, True, True, False]) & (not is_masked)
    d = torch.where(kept_mask, log_probs - old_log_probs, 0.0)
    sums = torch.stack([d[:3].sum(), d[3:].sum()]).repeat_interleave(3)
    counts = torch.stack([kept_mask[:3].sum(), kept_mask[3:].sum()]).repeat_interleave(3).float()
    return LossBatch(
        log_probs=log_probs.requires_grad_(),
        old_log_probs=old_log_probs,
        advantages=torch.tensor([1.0, 1.0, 1.0, -1.0, -1.0, -1.0]),
        kept_mask=kept_mask,
        token_weights=torch.where(kept_mask, 0.25, 0.0),
        sequence_index=torch.tensor([0, 0, 0, 1, 1, 1]),
        sequence_log_ratio=sums if loss.needs_sequence_sums else None,
        sequence_tokens=counts if loss.needs_sequence_sums else None,
        selected=torch.tensor([False, True, False, True, False, False]) & kept_mask if loss.needs_selection else None,
        entropy=torch.ones(6),
        old_entropy=torch.tensor([1.0, 1.1, 1.0, 0.9, 1.0, 1.0]) if loss.needs_old_entropy else None,
        filtered_old_log_probs=old_log_probs + 0.05 if loss.needs_filtered_old else None,
    )


def _no_tokens(loss: Loss) -> LossBatch:
    """The batch of a micro-batch without a response token, such as one that fills up a number."""
    values: dict[str, Any] = {
        name: None if value is None else value[:0].detach() for name, value in vars(_few_tokens(loss)).items()
    }
    return LossBatch(**{**values, "log_probs": torch.zeros(0, requires_grad=True)})
