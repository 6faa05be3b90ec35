"""Run folders with real event files and known curves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from megacov.monitor.tensorboard import MetricWriter


@pytest.fixture
def make_run(tmp_path) -> Callable[..., Path]:
    """fn(name, rewards, entropies, seed=1, loss="ppo_clip", first_step=0) -> run folder."""

    def make(
        name: str,
        rewards: Sequence[float],
        entropies: Sequence[float],
        *,
        seed: int = 1,
        loss: str = "ppo_clip",
        first_step: int = 0,
    ) -> Path:
        directory = tmp_path / name
        with MetricWriter(directory / "tensorboard") as writer:
            for step, (reward, entropy) in enumerate(zip(rewards, entropies, strict=True), start=first_step):
                writer.write_scalars({"reward/mean": reward, "entropy/token_mean": entropy}, step=step)
        config = {"run": {"name": name, "seed": seed}, "algorithm": {"loss": {"name": loss}}}
        (directory / "config.yaml").write_text(yaml.safe_dump(config))
        return directory

    return make
