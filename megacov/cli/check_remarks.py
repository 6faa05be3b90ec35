"""Warnings of `megacov check`: the run fits, and may still not be the one that the user wants."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from itertools import islice

from megacov.cli.check_plan import RunPlan
from megacov.cli.control_remarks import control_remarks
from megacov.cli.server_layout import longest_of, longest_served, servers_are_foreign, too_long
from megacov.config import RunConfig, config_warnings
from megacov.config.advice import prompts_repeat
from megacov.data.files import find_files, local_path
from megacov.data.rows import read_rows
from megacov.errors import DataError
from megacov.plan import ServerRequest
from megacov.plan.servers import SGLANG_SPARE_TOKENS

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
        yield from too_long(config, plan.sizes)
    yield from _context_remarks(plan, longest_of(config))
    yield from _data_remarks(config)
    yield from control_remarks(config)
    if batch.sequences_per_update % plan.layout.data:
        yield (
            f"{batch.sequences_per_update} sequences of an optimizer step are split over parallel.data "
            f"{plan.layout.data}: some ranks have one more than others."
        )
    if plan.request is not None:
        yield from _server_remarks(plan, plan.request)


def _context_remarks(plan: RunPlan, longest: int) -> Iterator[str]:
    """SGLang ends a response before its sequence fills the context."""
    config, context = plan.config, longest_served(plan.config, plan.sizes)
    if config.rollout.engine == "sglang" and context - SGLANG_SPARE_TOKENS < longest <= context:
        cut = longest - (context - SGLANG_SPARE_TOKENS)
        yield (
            f"data.max_prompt_length + rollout.max_response_length is {longest} and the servers' context is {context}, "
            f"of which SGLang leaves {SGLANG_SPARE_TOKENS} tokens free: the longest sequences lose {cut} and count as "
            f"truncated; lower rollout.max_response_length to {config.rollout.max_response_length - cut}."
        )


def _data_remarks(config: RunConfig) -> Iterator[str]:
    """Look at no more rows than a step has prompts; a file that is not here is not looked at."""
    enough = config.rollout.prompts_per_step + config.rollout.extra_prompts
    for place, source in enumerate(config.sources):
        if any(local_path(path) is None for path in source.path):
            continue
        try:
            rows = (row for file in find_files(source.path) for row in read_rows(file)[1])
            num_prompts = sum(1 for _ in islice(rows, enough))
        except (DataError, OSError):
            continue
        if num_prompts:
            why = prompts_repeat(config, num_prompts, source=place)
            if why is not None:
                yield why


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
