"""Says at the end of a run where everything is and how to look at it."""

from __future__ import annotations

import shlex
from pathlib import Path

from megacov.config import RunConfig
from megacov.monitor.entropy_law.verdict import FEWEST_POINTS


def where_everything_is(config: RunConfig, folder: Path) -> list[str]:
    """At most eight lines for the end of a run.

    Args:
        config: configuration of the run, which has done all its steps.
        folder: run folder under its present name; a user may have renamed it.

    Returns:
        Lines of text.
    """
    run = shlex.quote(str(folder))
    lines = [f"megacov: {config.run.name} has done all {config.run.steps} steps; everything is in {folder}"]
    if folder != config.run.directory:
        lines[0] += f", but samples and metrics since it got that name are in {config.run.directory}"
    if config.checkpoint.every > 0:
        lines += [
            f"  checkpoint   {folder}/checkpoints/step_{config.run.steps:08d}",
            f"  model        megacov export {run} OUT  writes it as a Hugging Face folder",
        ]
    if config.monitor.samples_per_step > 0:
        lines.append(f"  samples      megacov samples {run}")
    lines.append(f"  report       megacov report {run}  writes one page: charts, samples, alarms")
    if config.run.steps >= FEWEST_POINTS * config.monitor.log_every:
        lines.append(f"  forecast     megacov predict {run}  fits the reward that the entropy allows")
    return [
        *lines,
        f"  metrics      tensorboard --logdir {shlex.quote(f'{folder}/tensorboard')}",
        f"  comparison   megacov compare {run} OTHER_RUN",
    ]
