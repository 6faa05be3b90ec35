"""`megacov check --suggest`: layouts that fit, or what comes nearest and why it does not fit."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Group
from rich.text import Text

from megacov.cli.check_plan import GIB, RunPlan, plan_unsplit
from megacov.cli.check_tables import render_search
from megacov.config import RunConfig
from megacov.errors import ConfigError
from megacov.plan import Layout, Suggestion

_MIB = 2**20


def render_unplanned(config: RunConfig) -> Group:
    """Layouts for a run whose own layout cannot be planned, such as one that the model's heads do not allow."""
    try:
        plan = plan_unsplit(config)
    except ConfigError as error:
        return Group(Text(f"No layout can be suggested before this is corrected: {error}"))
    return render_advice(plan)


def render_advice(plan: RunPlan) -> Group:
    """Layouts of the run's GPUs that fit; else the nearest one, and layouts of more GPUs. Never empty."""
    search, gpus = plan.search(), plan.layout.world_size
    if search.fitting:
        return Group(render_search(search))
    more = plan.search_more_gpus()
    if search.nearest is None:
        why = (
            f"No layout of {gpus} GPUs splits this run: parallel.tensor must divide the model's heads and "
            "cluster.gpus_per_node, parallel.pipeline its layers, and every data-parallel rank needs one of the "
            f"{plan.batch_plan.sequences_per_update} sequences of an optimizer step."
        )
    else:
        nearest = search.nearest
        why = f"No layout of {gpus} GPUs fits. The nearest is {_settings(nearest)}: {_why_not(nearest, plan)}"
    if more is None:
        return Group(Text(f"{why} No layout of more GPUs fits either."))
    return Group(Text(f"{why} More GPUs do:"), render_search(more))


def _settings(suggestion: Suggestion) -> str:
    """The settings of a layout, as they are written on the command line."""
    plain = asdict(Layout())
    sizes = asdict(suggestion.layout).items()
    shown = [f"parallel.{name}={str(value).lower()}" for name, value in sizes if value != plain[name]]
    others = f"model.recompute={suggestion.recompute}", f"batch.micro_batch_tokens={suggestion.micro_batch_tokens}"
    return ", ".join([*shown, *others])


def _why_not(suggestion: Suggestion, plan: RunPlan) -> str | None:
    usable = plan.cluster.usable_bytes
    if suggestion.peak <= usable:
        return suggestion.why_not
    unit, name = (GIB, "GiB") if suggestion.peak >= GIB else (_MIB, "MiB")
    return f"{suggestion.peak / unit:.1f} {name} on the fullest GPU, which has {usable / unit:.1f} {name}."
