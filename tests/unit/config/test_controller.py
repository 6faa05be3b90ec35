"""Controllers as sections: what no law can work with is refused, and what `check` simulates ends."""

from __future__ import annotations

import pytest

from megacov.config import load_config
from megacov.errors import ConfigError

CONTROLLED = (
    "algorithm.loss={name: kl_cov, kl_coef: 1.0}",
    "algorithm.selection={name: kl_cov, ratio: 0.01}",
    "algorithm.controller={name: pi, target_entropy: 0.5, acts_on: kl_coef, bounds: {lower: 0.5, upper: 8.0}}",
)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("target_entropy=.nan", "target_entropy is nan: it must be a number, above 0"),
        ("target_entropy=0", "target_entropy is 0: it must be a number, above 0"),
        ("bounds={lower: 8.0, upper: 0.5}", "lower is 8.0 and upper is 0.5: set lower below upper."),
        ("bounds={lower: -1.0, upper: 0.5}", "bounds.lower is -1.0: it must be a number, at least 0"),
        ("bounds={lower: 0.5, upper: .inf}", "bounds.upper is inf: it must be a number, above 0"),
        ("target_schedule=[{step: 5, entropy: 0.4}, {step: 3, entropy: 0.3}]", "step 5 before step 3: put its points"),
        ("target_schedule=[{step: 5, entropy: 0.4}, {step: 5, entropy: 0.3}]", "step 5 before step 5: put its points"),
        ("gains={proportional: 0.0, integral: 0.0}", "so the value never changes: raise one of them."),
        ("gain=2.0", "algorithm.controller.gain is not a setting"),
        # The ratio of the bounds is beyond a float, so that every place between them would be NaN.
        ("{scale: log, bounds: {lower: 1e-300, upper: 1e10}}", "scale is log and 1e+10 over 1e-300 is no number"),
        # The simulation takes 50 time constants, and would take hours.
        ("plant.time_constant=1e7", "plant.time_constant is 10000000.0: it must be a number, above 0 and at most 2000"),
        ("plant.gain=1e300", "plant.gain is 1e+300: it must be a number, above 0 and at most 1000000.0"),
    ],
)
def test_a_mistake_ends_in_one_sentence(change: str, sentence: str) -> None:
    place, dot = ("algorithm.controller=", "") if change.startswith("{") else ("algorithm.controller", ".")
    with pytest.raises(ConfigError) as caught:
        load_config("yaml_configs/runs/tiny_grpo.yaml", [*CONTROLLED, f"{place}{dot}{change}"])
    assert sentence in str(caught.value) and len(str(caught.value).splitlines()) == 1
