"""What the exact selection of a run will cost: passes, and memory for forwards whose backwards wait."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from megacov.cli.check_plan import RunPlan, plan_run
from megacov.config import RunConfig
from megacov.config.selections import ClipCovSelection, HighEntropySelection, KlCovSelection
from megacov.errors import ConfigError, DataError
from megacov.plan import plan_room
from megacov.plan.correction import correction_cost, evenly_spread_share

USUAL_SHARE = 0.5
"""Mean length of a usual batch as a share of the longest, about that of the paper's 32B runs late in training."""


def kept_positions(config: RunConfig) -> Callable[[int, bool], int] | None:
    """How `selection.method: auto` finds the positions that it may keep.

    Args:
        config: configuration that has passed the rules.

    Returns:
        (bytes that a rank may use, whether layers are fused) -> positions of an optimizer step on a rank that fit; None
        if nobody asks, or if the run cannot be planned.
    """
    if not config.selects_by_current or config.algorithm.selection.method != "auto":
        return None
    try:
        plan = plan_run(config)
    except (ConfigError, DataError):
        return None

    def fitting(usable_bytes: int, is_fused: bool) -> int:
        settings = replace(plan.settings, fused=is_fused)
        usable = min(usable_bytes, plan.cluster.usable_bytes)
        return plan_room(plan.sizes, plan.layout, plan.batch_plan, settings, usable_bytes=usable).positions

    return fitting


def selection_rows(plan: RunPlan) -> Iterator[tuple[str, str, str]]:
    """Rows of a table: name, value and remark.

    Args:
        plan: of a run.

    Yields:
        What later optimizer steps do to select by current log-probs; nothing if they do not.
    """
    config, batch = plan.config, plan.batch_plan
    if not config.selects_by_current:
        return
    method, updates = config.algorithm.selection.method, config.batch.updates_per_rollout
    room = plan_room(plan.sizes, plan.layout, plan.batch_plan, plan.settings, usable_bytes=plan.cluster.usable_bytes)
    longest = -(-batch.sequences_per_rank * batch.longest // plan.layout.context)
    how = {
        "auto": "its own where all its positions fit; else one more"
        + (", or a correction where that is cheaper" if config.may_correct_gradients else ""),
        "pass": "its own, and one more for the selection",
        "deferred": "its own, whose backwards wait for the selection",
        "correction": "its own, and a forward-backward over sequences up to their last selected token",
    }
    passes = {"auto": "1 or 2", "pass": "2", "deferred": "1", "correction": "1"}
    yield (
        "forwards",
        f"{passes[method]} {'pass' if passes[method] == '1' else 'passes'}",
        f"of each of {updates - 1} in {updates} optimizer steps: {how[method]} (selection.method {method})",
    )
    if config.may_correct_gradients:
        yield _correction(plan)
    if method in ("pass", "correction"):
        return
    yield (
        "room",
        f"{room.positions:,} positions",
        f"of an optimizer step on a rank, if stage {room.stage} keeps {room.position_bytes / 1e3:,.1f} kB of each",
    )
    for name, share in (("usual", USUAL_SHARE), ("longest", 1.0)):
        positions = int(longest * share)
        verdict = "fits: 1 pass" if positions <= room.positions else _too_many(config)
        lengths = "all sequences as long as settings allow" if share == 1 else f"{share:.0%} of the longest on average"
        yield f"{name} batch", f"{positions:,} positions", f"{lengths}; {verdict}"


def _correction(plan: RunPlan) -> tuple[str, str, str]:
    """What a correction costs in a usual batch, by the one thing known of it: how many tokens are selected."""
    config, layout = plan.config, plan.layout
    prompt, response = (
        USUAL_SHARE * length for length in (config.data.max_prompt_length, config.rollout.max_response_length)
    )
    chosen = config.algorithm.selection
    if not isinstance(chosen, KlCovSelection | ClipCovSelection | HighEntropySelection):
        return (
            "correction",
            "unknown",
            "how many tokens are selected is known in a run alone (selection/effective_ratio)",
        )
    share = evenly_spread_share(chosen.ratio, prompt=prompt, response=response)
    cost = correction_cost(config.model.recompute, pipeline=layout.pipeline, virtual=layout.virtual_pipeline)
    number = max(1, round(USUAL_SHARE * plan.batch_plan.micro_batches))
    return (
        "correction",
        f"{cost.over_a_pass(share, micro_batches=number):.2f} passes",
        f"over {share:.0%} of a usual batch, if selected tokens fall evenly; less where they cluster "
        "(perf/selection_correction_share)",
    )


def _too_many(config: RunConfig) -> str:
    if config.defers_backwards:
        return "too many: the run would be out of memory"
    return "too many: 2 passes" + (", or a correction" if config.may_correct_gradients else "")
