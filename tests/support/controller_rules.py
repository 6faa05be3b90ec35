"""Settings that break the rules about a controller, with what the error says."""

from __future__ import annotations

from typing import Any

from tests.support.config_values import algorithm


def controlled(acts_on: str, lower: float, upper: float, **further: Any) -> dict[str, Any]:
    """An algorithm of KL-Cov with a controller."""
    bounds = {"lower": lower, "upper": upper}
    controller = {"target_entropy": 0.3, "acts_on": acts_on, "bounds": bounds}
    return algorithm("kl_cov", name="kl_cov") | {"controller": controller} | further


BROKEN_CONTROLLERS = {
    "the_controlled_setting_exists": (
        {"algorithm": controlled("clip_high", 0.1, 0.4)},
        "acts on clip_high and algorithm.loss.name is kl_cov, which has no clip_high: let .* choose another loss",
    ),
    "the_controlled_setting_exists (selection)": (
        {"algorithm": controlled("ratio", 1e-4, 1e-3, **algorithm("ppo_clip", name="none"))},
        "acts on ratio and algorithm.selection.name is none, which has no ratio: .* choose another selection",
    ),
    "the_controlled_setting_exists (of another loss)": (
        {"algorithm": {"loss": {"name": "entropic"}, "controller": {"name": "repo_r", "target_entropy": 0.2}}},
        "acts on zeta and algorithm.loss.name is entropic, which has no zeta: .* choose another loss",
    ),
    "the_controlled_setting_begins_within_bounds": (
        {"algorithm": controlled("kl_coef", 2.0, 4.0)},
        "algorithm.loss.kl_coef is 1 and algorithm.controller.bounds are 2 and 4: begin between them",
    ),
    "the_controlled_setting_begins_within_bounds (adaptive)": (
        {"algorithm": {"entropy_coef": 0.01, "controller": {"name": "adaptive_entropy", "target_entropy": 0.2}}},
        "algorithm.entropy_coef is 0.01 and algorithm.controller.bounds are 0 and 0.005: begin between them",
    ),
    "a_controlled_ratio_is_a_fraction": (
        {"algorithm": controlled("ratio", 1e-4, 0.2)},
        "bounds.upper is 0.2, a fraction .* less than 0.05: if it was a percentage set 0.002, .*allow_large_ratio",
    ),
    "a_controlled_ratio_is_a_fraction (none)": (
        {"algorithm": controlled("ratio", 0.0, 0.01)},
        "bounds.lower is 0, which selects nothing: raise it",
    ),
    "a_controller_knows_the_entropy": (
        {"algorithm": controlled("kl_coef", 0.5, 2.0, old_log_probs="rollout"), "rollout": {"temperature": 0.9}},
        "steers the entropy at temperature 1, .* rollout.temperature is 0.9, .* set algorithm.old_log_probs=recompute",
    ),
}
HELD_CONTROLLERS = [
    {"algorithm": controlled("kl_coef", 1.0, 1.5)},
    {"algorithm": controlled("ratio", 2e-4, 0.049)},
    {"algorithm": controlled("kl_coef", 0.5, 2.0, old_log_probs="rollout")},
    {"algorithm": controlled("kl_coef", 0.5, 2.0), "rollout": {"temperature": 0.9}},
]
