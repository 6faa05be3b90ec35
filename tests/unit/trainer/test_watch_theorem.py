"""The agreement of predicted and observed changes of entropy while a run trains, and after it was resumed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from megacov.config import load_config
from megacov.monitor.event_reader import read_history
from megacov.monitor.tensorboard import MetricWriter
from megacov.monitor.theorem_agreement import WINDOW
from megacov.trainer.watch import Watch

LAST = 2 * WINDOW + 20
NOISE = np.random.default_rng(0).normal(size=LAST + 1)


def measured(step: int) -> dict[str, float]:
    """Every second step is measured; one prediction is right but for its scale, the other has noise of equal size."""
    if step % 2:
        return {"reward/mean": 0.5}
    observed = float(np.float32(np.sin(step) * 1e-3))
    return {
        "theorem/observed": observed,
        "theorem/gradient": observed / 4,
        "theorem/centred": observed + 1e-3 * float(NOISE[step]),
    }


def train(folder: Path, first: int, last: int) -> None:
    resumed_at = None if first == 1 else first
    config = load_config("yaml_configs/runs/tiny_grpo.yaml", (f"run.directory={folder}",))
    with MetricWriter(folder / "tensorboard", first_step=resumed_at) as writer:
        watch = Watch(config, writer, first_step=resumed_at)
        for step in range(first, last + 1):
            writer.write_scalars(measured(step), step=step)
            watch.add_step(step, measured(step))


def agreements(folder: Path) -> dict[str, list[tuple[int, float]]]:
    scalars = read_history(folder / "tensorboard").scalars
    return {
        tag: list(zip(series.steps.tolist(), series.values.tolist(), strict=True))
        for tag, series in scalars.items()
        if tag.startswith("theorem/")
    }


def test_a_run_writes_the_agreement_over_the_window_and_a_resumed_one_the_same(tmp_path):
    train(tmp_path / "whole", 1, LAST)
    whole = agreements(tmp_path / "whole")
    assert whole.keys() == {
        "theorem/observed",
        *(f"theorem/{name}" for name in ("gradient", "centred")),
        *(
            f"theorem/{name}_{kind}"
            for name in ("gradient", "centred")
            for kind in ("correlation", "slope", "same_sign")
        ),
    }
    # Five measurements make the first.
    assert [step for step, _ in whole["theorem/gradient_slope"]] == list(range(10, LAST + 1, 2))
    assert whole["theorem/gradient_slope"][-1][1] == pytest.approx(4, rel=1e-5)
    assert whole["theorem/gradient_correlation"][-1][1] == pytest.approx(1)
    window = range(LAST - 2 * (WINDOW - 1), LAST + 1, 2)
    x, y = ([measured(step)[f"theorem/{name}"] for step in window] for name in ("centred", "observed"))
    assert whole["theorem/centred_correlation"][-1][1] == pytest.approx(np.corrcoef(x, y)[0, 1], rel=1e-5)
    assert whole["theorem/centred_slope"][-1][1] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-5)
    assert whole["theorem/centred_same_sign"][-1][1] == pytest.approx(np.mean(np.sign(x) == np.sign(y)))

    train(tmp_path / "resumed", 1, 90)  # it is killed here, and its last checkpoint is older
    train(tmp_path / "resumed", 83, LAST)
    assert agreements(tmp_path / "resumed") == whole
