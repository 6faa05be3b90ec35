"""Rules between a controller and the settings that it acts on, as in `megacov.config.rules`."""

from __future__ import annotations

from typing import Any

from megacov.config.controller import AdaptiveEntropyController, NoController, PiController
from megacov.config.schema import RunConfig
from megacov.config.selections import LARGE_RATIO


def controlled_setting(config: RunConfig) -> tuple[str, Any]:
    """The setting that the controller acts on, with its dotted path; None as its value where loss or selection lack it.

    Args:
        config: configuration with a controller.

    Returns:
        Path and value.
    """
    algorithm, name = config.algorithm, str(config.algorithm.controller.acts_on)
    if name == "entropy_coef":
        return "algorithm.entropy_coef", algorithm.entropy_coef
    owner = "selection" if name == "ratio" else "loss"
    return f"algorithm.{owner}.{name}", getattr(algorithm, owner).hyperparameters().get(name)


def the_controlled_setting_exists(config: RunConfig) -> str | None:
    """Loss and selection have their own settings."""
    if isinstance(config.algorithm.controller, NoController):
        return None
    path, value = controlled_setting(config)
    if value is not None:
        return None
    owner, _, name = path.removeprefix("algorithm.").partition(".")
    chosen = getattr(config.algorithm, owner).name
    return (
        f"algorithm.controller acts on {name} and algorithm.{owner}.name is {chosen}, which has no {name}: let the "
        f"controller act on another setting, or choose another {owner}."
    )


def the_controlled_setting_begins_within_bounds(config: RunConfig) -> str | None:
    """A controller begins where the setting is."""
    controller = config.algorithm.controller
    if not isinstance(controller, PiController | AdaptiveEntropyController):
        return None
    (path, value), bounds = controlled_setting(config), controller.bounds
    if value is None or bounds.lower <= value <= bounds.upper:
        return None
    return (
        f"{path} is {value:g} and algorithm.controller.bounds are {bounds.lower:g} and {bounds.upper:g}: begin between "
        "them, or widen them."
    )


def a_controlled_ratio_is_a_fraction(config: RunConfig) -> str | None:
    """As for a fixed ratio, a bound of 0.2 is hardly meant."""
    algorithm = config.algorithm
    controller, selection = algorithm.controller, algorithm.selection
    if not isinstance(controller, PiController) or controller.acts_on != "ratio":
        return None
    allows = selection.name not in ("kl_cov", "clip_cov") or selection.allow_large_ratio
    lower, upper = controller.bounds.lower, controller.bounds.upper
    if lower == 0:
        return "algorithm.controller acts on ratio and its bounds.lower is 0, which selects nothing: raise it."
    if upper > 1 or (upper >= LARGE_RATIO and not allows):
        return (
            f"algorithm.controller acts on ratio and its bounds.upper is {upper:g}, a fraction of all tokens, and "
            f"covariance methods act on less than {LARGE_RATIO}: if it was a percentage set {upper / 100:g}, and if "
            "you mean it set it to at most 1 with algorithm.selection.allow_large_ratio=true."
        )
    return None


def a_controller_knows_the_entropy(config: RunConfig) -> str | None:
    """With the server's log-probs, an optimizer step's own forward is the only one, at the rollout temperature."""
    algorithm = config.algorithm
    if isinstance(algorithm.controller, NoController) or algorithm.old_log_probs == "recompute":
        return None
    if config.temperatures is None and config.temperature == 1:
        return None
    return (
        f"algorithm.controller steers the entropy at temperature 1, algorithm.old_log_probs is rollout and "
        f"rollout.temperature is {config.temperature:g}, at which no entropy at 1 is computed: set "
        "algorithm.old_log_probs=recompute, or sample at temperature 1."
    )


CONTROLLER_RULES = (
    the_controlled_setting_exists,
    the_controlled_setting_begins_within_bounds,
    a_controlled_ratio_is_a_fraction,
    a_controller_knows_the_entropy,
)
