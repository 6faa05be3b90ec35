"""The settings that speak against the law, read from real configurations."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.config.schema import RunConfig
from megacov.config.yaml_text import parse_yaml, read_yaml
from megacov.monitor.entropy_law import read_conditions
from tests.support.config_values import values

CONTROLLER = "{target_entropy: 0.3, acts_on: clip_high, bounds: {lower: 0.1, upper: 0.3}}"
ALGORITHMS = Path(__file__).parents[4] / "yaml_configs" / "algorithms"


def found(**sections) -> dict[str, bool]:
    """Kinds, and whether they refuse, of a configuration as a run writes it."""
    config = RunConfig.model_validate(values(**sections)).model_dump(mode="json")
    return {reason.kind: reason.refuses for reason in read_conditions(config)}


@pytest.mark.parametrize(
    ("name", "kinds"),
    [
        ("grpo", {}),
        ("clip_higher", {"entropy_held": False}),
        ("clip_cov", {"intervention": True}),
        ("kl_cov", {"intervention": True}),
        ("kl_cov_controller", {"intervention": True}),
        ("adaptive_entropy", {"intervention": True}),
        ("entropic", {"intervention": True, "other_loss": False}),
        ("repo_r", {"intervention": True, "other_loss": False}),
        ("high_entropy", {"intervention": True, "entropy_held": False}),
        ("gspo", {"other_loss": False}),
        ("cispo", {"other_loss": False}),
    ],
)
def test_published_algorithms(name, kinds):
    algorithm = read_yaml(ALGORITHMS / f"{name}.yaml", source=name)["algorithm"]
    assert found(algorithm=algorithm) == kinds


@pytest.mark.parametrize(
    ("section", "text", "kinds"),
    [
        ("algorithm", "{entropy_coef: 1e-3}", {"intervention": True}),
        ("algorithm", f"{{controller: {CONTROLLER}}}", {"intervention": True}),
        ("algorithm", "{controller: {name: none}}", {}),
        ("algorithm", "{ref_kl_coef: 1e-3}", {"entropy_held": False}),
        ("rollout", "{max_staleness: 1}", {"off_policy": False}),
        ("rollout", "{partial_after_s: 5.0}", {"off_policy": False}),
        ("batch", "{updates_per_rollout: 16}", {}),
        ("batch", "{updates_per_rollout: 17}", {"off_policy": False}),
        ("data", "{path: d, curriculum: {}}", {"changing_data": False}),
        ("data", "{sources: [{name: x, path: d}]}", {}),
        ("data", "{sources: [{name: x, path: d}, {name: y, path: e}]}", {"changing_data": False}),
    ],
)
def test_single_settings(section, text, kinds):
    assert found(**{section: parse_yaml(text, source="test")}) == kinds


def test_settings_are_named_with_their_values():
    (reason,) = read_conditions({"algorithm": {"loss": {"name": "kl_cov"}, "entropy_coef": 0.01}})
    assert "algorithm.loss is kl_cov, algorithm.entropy_coef is 0.01" in reason.sentence


@pytest.mark.parametrize("config", [{}, {"algorithm": None, "data": []}, {"rollout": {"max_staleness": "x"}}])
def test_a_configuration_with_holes_says_nothing(config):
    assert read_conditions(config) == ()
