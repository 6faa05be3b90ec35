"""Warnings of `megacov check`: the run fits, and may still not be the one that the user wants."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from megacov.cli.check_plan import RunPlan, too_long
from megacov.cli.server_layout import servers_are_foreign
from megacov.config import config_warnings
from megacov.plan import ServerRequest

# A plan is an estimate, so a run closer to the limit than this gets a warning.
_TIGHT = 0.9


def remarks(plan: RunPlan) -> list[str]:
    """Warnings about a run, one sentence each."""
    return [*config_warnings(plan.config), *plan.placement.remarks, *_own_remarks(plan)]


def _own_remarks(plan: RunPlan) -> Iterator[str]:
    config, batch = plan.config, plan.batch_plan
    peak, usable = max(stage.peak for stage in plan.stages), plan.cluster.usable_bytes
    if _TIGHT * usable < peak <= usable:
        yield f"the fullest GPU is planned at {peak / usable:.0%} of its memory, within the error of the plan."
    if servers_are_foreign(config):
        yield from too_long(plan)
    if batch.sequences_per_update % plan.layout.data:
        yield (
            f"{batch.sequences_per_update} sequences of an optimizer step are split over parallel.data "
            f"{plan.layout.data}: some ranks have one more than others."
        )
    if plan.request is not None:
        yield from _server_remarks(plan, plan.request)


def _server_remarks(plan: RunPlan, request: ServerRequest) -> Iterator[str]:
    config = plan.config
    if plan.placement.servers == 0:
        yield "no GPU is left for rollout servers: set cluster.nodes to the nodes of the whole job."
    # `megacov launch` fills in the address if it starts the servers.
    is_elsewhere = not request.colocated and config.rollout.servers == 0 and config.rollout.addresses_file is None
    sync = config.weight_sync
    if sync.traits.servers_call_back and ip_address(sync.host).is_loopback and is_elsewhere:
        yield (
            f"weight_sync.host is {sync.host}, which servers on other nodes cannot reach: override it "
            "with the address of the trainer's first node."
        )
