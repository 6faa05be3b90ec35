"""What a run's settings say about the law: it was found without intervention on entropy, on-policy, on fixed data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from megacov.monitor.entropy_law.verdict import Reason

MOST_UPDATES = 16
"""Optimizer steps a rollout with which the paper found the law: 512 x 8 responses in batches of 256."""

GIVEN = {
    "intervention": Reason("intervention", "Something steered the entropy, and the law then does not hold.", True),
    "off-policy": Reason("off_policy", "The run is off-policy, where the law need not hold.", False),
    "changing-data": Reason("changing_data", "The data changed during the run, and a and b depend on the data.", False),
}
"""Conditions that a user may state of a run whose settings cannot be read."""


def read_conditions(config: Mapping[str, Any]) -> tuple[Reason, ...]:
    """Find the settings under which the law need not hold.

    Args:
        config: a run's config.yaml as plain values. What is missing has its default.

    Returns:
        The reasons, one for each kind of setting.
    """
    return (*_interventions(config), *_off_policy(config), *_changes_of_data(config))


def _interventions(config: Mapping[str, Any]) -> Iterator[Reason]:
    loss, selection = _get(config, "algorithm", "loss", "name"), _get(config, "algorithm", "selection", "name")
    mask = _get(config, "algorithm", "entropy_mask", "keep") or "all"
    bonus = _number(config, "algorithm", "entropy_coef")
    controller = _get(config, "algorithm", "controller", "name") or "none"
    steering = [
        *([f"algorithm.loss is {loss}"] if loss in ("clip_cov", "kl_cov") else []),
        *([f"algorithm.selection is {selection}"] if selection not in (None, "none") else []),
        *([f"algorithm.entropy_mask keeps {mask}"] if mask != "all" else []),
        *([f"algorithm.entropy_coef is {bonus:g}"] if bonus else []),
        *([f"algorithm.controller is {controller}"] if controller != "none" else []),
    ]
    if steering:
        sentence = f"The run steers its entropy ({', '.join(steering)}), and the law then does not hold."
        yield Reason("intervention", sentence, refuses=True)
    kl = _number(config, "algorithm", "ref_kl_coef")
    low, high = (_number(config, "algorithm", "loss", name) for name in ("clip_low", "clip_high"))
    holding = [
        *([f"algorithm.ref_kl_coef is {kl:g}"] if kl else []),
        *([f"algorithm.loss clips at {low:g} below and {high:g} above"] if high > low and loss == "ppo_clip" else []),
    ]
    if holding:
        sentence = f"The run holds its entropy up ({', '.join(holding)}), and the law was found without that."
        yield Reason("entropy_held", sentence, refuses=False)
    if loss not in (None, "ppo_clip", "clip_cov", "kl_cov"):
        yield Reason("other_loss", f"algorithm.loss is {loss}, and the law was found with ppo_clip.", refuses=False)


def _off_policy(config: Mapping[str, Any]) -> Iterator[Reason]:
    staleness = _number(config, "rollout", "max_staleness")
    updates = _number(config, "batch", "updates_per_rollout")
    is_partial = _get(config, "rollout", "partial_after_s") is not None
    found = [
        *([f"rollout.max_staleness is {staleness:g}"] if staleness else []),
        *(["rollout.partial_after_s continues responses with newer weights"] if is_partial else []),
        *([f"batch.updates_per_rollout is {updates:g}, above {MOST_UPDATES}"] if updates > MOST_UPDATES else []),
    ]
    if found:
        yield Reason("off_policy", f"The run is off-policy ({', '.join(found)}), where the law need not hold.", False)


def _changes_of_data(config: Mapping[str, Any]) -> Iterator[Reason]:
    sources = _get(config, "data", "sources")
    num_sources = len(sources) if isinstance(sources, list) else 0
    found = [
        *(["data.curriculum passes prompts over"] if _get(config, "data", "curriculum") is not None else []),
        *([f"data.sources mixes {num_sources} sources"] if num_sources > 1 else []),
    ]
    if found:
        sentence = f"The prompts are not one fixed set ({', '.join(found)}), and a and b depend on the data."
        yield Reason("changing_data", sentence, refuses=False)


def _get(config: Mapping[str, Any], *names: str) -> Any:
    value: Any = config
    for name in names:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _number(config: Mapping[str, Any], *names: str) -> float:
    value = _get(config, *names)
    return float(value) if isinstance(value, int | float) else 0.0
