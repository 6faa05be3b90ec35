"""The example of a loss outside of the package: found by its name, checked like our own, right by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megacov.config import load_config
from megacov.errors import ConfigError
from megacov.monitor.tags import metric_tags
from megacov.trainer.algorithm import build_algorithm
from megacov.types import LossBatch
from tests.end_to_end.test_train import scalars_of
from tests.support.command import run

RUN = Path(__file__).parents[2] / "examples" / "custom_loss" / "run.yaml"


def test_values_and_gradients_by_hand() -> None:
    algorithm = build_algorithm(load_config(RUN))
    batch = LossBatch(
        log_probs=torch.tensor([4.0, 1.0, 0.25]).double().log().requires_grad_(),
        old_log_probs=torch.zeros(3).double(),
        advantages=torch.tensor([3.0, -1.0, 2.0]).double(),
        kept_mask=torch.tensor([True, True, False]),
        token_weights=torch.ones(3).double(),
    )
    output = algorithm.loss(batch, **algorithm.loss_hyperparameters)
    output.loss.backward()
    assert output.loss.item() == pytest.approx(-3 * 2 / 0.5 + 1 * 1 / 0.5)
    assert batch.log_probs.grad is not None
    assert batch.log_probs.grad.tolist() == pytest.approx([-3 * 2, 1, 0])
    assert output.metrics["power_weight"].item() == pytest.approx(2 + 1)


@pytest.mark.dist
def test_it_trains_and_its_metric_is_logged(tmp_path: Path) -> None:
    overrides = ("run.steps=2", f"run.directory={tmp_path / 'run'}", "parallel.data=2", "rollout.prompts_per_step=8")
    ended = run("train", "examples/custom_loss/run.yaml", *overrides, log=tmp_path / "log")
    assert ended.code == 0, ended.output
    assert scalars_of(tmp_path / "run")["policy/power_weight"][0] == pytest.approx(1, abs=0.1)


def test_its_metric_has_a_tag() -> None:
    (tag,) = metric_tags(build_algorithm(load_config(RUN)).loss.metrics)
    assert (tag.name, tag.unit, tag.denominator) == ("policy/power_weight", "-", "tokens")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("algorithm.loss.powr=0.3", "algorithm.loss.powr is not a setting: did you mean algorithm.loss.power?"),
        ("algorithm.loss.power=high", "algorithm.loss.power is 'high': it must be a number."),
        ("algorithm.loss.power=2", "algorithm.loss.power is 2: set it above 0 and at most 1."),
    ],
)
def test_mistakes_are_seen_before_training(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_algorithm(load_config(RUN, [override]))
    assert str(caught.value) == message
