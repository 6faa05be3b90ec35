"""The plan of a run as tables."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group
from rich.table import Table
from rich.text import Text

from megacov.cli.check_plan import GIB, RunPlan
from megacov.cli.push_plan import push_rows
from megacov.cli.selection_plan import selection_rows
from megacov.config.selection_size import covariance_ratio, most_tokens_in_scope, num_selected
from megacov.plan import Search, StageMemory, total_parameters

_MIB = 2**20
_SHOWN_SUGGESTIONS = 12


def render_plan(plan: RunPlan) -> Group:
    """All tables of a plan, for rich to print."""
    config, sizes = plan.config, plan.sizes
    title = Text(
        f"{config.run.name}: {sizes.family}, {total_parameters(sizes) / 1e6:,.1f} M parameters in {config.model.dtype} "
        f"({plan.model_file})",
        style="bold",
    )
    parts: list[Text | Table] = [title, _batch_table(plan), _placement_table(plan), _memory_table(plan)]
    if config.selects_by_current:
        parts.append(_pairs("Selection by current log-probs", selection_rows(plan)))
    if plan.server is not None:
        parts.append(_server_table(plan))
    push = list(push_rows(plan))
    if push:
        parts.append(_pairs("A push of weights", iter(push)))
    return Group(*parts)


def render_search(search: Search) -> Table:
    """The first dozen of the layouts that fit; there is at least one."""
    table = Table(
        title=f"Layouts of {search.world_size} GPUs that fit, fastest first by estimate", title_justify="left"
    )
    has_experts = any(one.layout.expert > 1 for one in search.fitting)
    names = ["tensor", "sequence", "pipeline", "virtual", "context", "data", "recompute", "micro_batch_tokens"]
    for name in [*names[:5], *(["expert"] if has_experts else []), *names[5:], "fullest GPU", "time"]:
        table.add_column(name, justify="right")
    for one in search.fitting[:_SHOWN_SUGGESTIONS]:
        layout = one.layout
        sizes = (layout.tensor, layout.sequence, layout.pipeline, layout.virtual_pipeline, layout.context)
        experts = (layout.expert,) if has_experts else ()
        values = (*sizes, *experts, layout.data, one.recompute, one.micro_batch_tokens)
        shown = [str(value).lower() for value in values]
        table.add_row(*shown, _memory(one.peak, GIB), f"{one.seconds / search.fitting[0].seconds:.2f} x")
    return table


def _memory(num_bytes: int, unit: int) -> str:
    return f"{num_bytes / unit:,.1f} {'GiB' if unit == GIB else 'MiB'}"


def _unit(plan: RunPlan) -> int:
    return GIB if max(stage.peak for stage in plan.stages) >= GIB else _MIB


def _pairs(title: str, rows: Iterator[tuple[str, str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _batch_table(plan: RunPlan) -> Table:
    config, batch, layout = plan.config, plan.batch_plan, plan.layout

    def rows() -> Iterator[tuple[str, str, str]]:
        sizes = sorted(set(config.group_sizes))
        samples = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
        yield (
            "rollout batch" if len(sizes) == 1 else "largest rollout batch",
            f"{batch.sequences:,} sequences",
            f"{config.rollout.prompts_per_step} prompts x {samples} samples, {config.run.steps} times",
        )
        yield (
            "mini-batch",
            f"{batch.sequences_per_update:,} sequences",
            f"{config.batch.updates_per_rollout} optimizer steps a rollout batch, {batch.total_updates:,} in all; at "
            f"most {batch.tokens_per_update:,} tokens",
        )
        yield (
            "on a data-parallel rank",
            f"{batch.sequences_per_rank:,} sequences",
            f"over {layout.data} of them, at most {batch.longest:,} positions each",
        )
        yield (
            "micro-batches",
            f"{batch.micro_batches:,}",
            f"of an optimizer step, if all sequences are that long; micro_batch_tokens {plan.batch.micro_batch_tokens}",
        )
        yield (
            "fullest micro-batch",
            f"{batch.positions:,} positions",
            f"{batch.positions_per_rank:,} on each of {layout.context} context-parallel ranks",
        )
        ratio = covariance_ratio(config)
        if ratio is not None:
            tokens = most_tokens_in_scope(config)
            yield (
                "selected at a time",
                f"{num_selected(ratio, tokens):,} tokens",
                f"at most: algorithm.selection.ratio {ratio:g} of {tokens:,} response tokens; fewer of shorter ones",
            )

    return _pairs("Batch", rows())


def _placement_table(plan: RunPlan) -> Table:
    layout, placement = plan.layout, plan.placement

    def rows() -> Iterator[tuple[str, str, str]]:
        for stage, (first, last) in enumerate(placement.stage_nodes):
            yield (
                f"trainer, stage {stage}",
                _nodes(first, last),
                f"{layout.ranks_per_stage} GPUs: tensor {layout.tensor} x context {layout.context} x data {layout.data}"
                + (f", expert {layout.expert}" if layout.expert > 1 else ""),
            )
        if plan.request is not None and placement.server_nodes is not None:
            where = "on the trainer's GPUs" if plan.request.colocated else f"{placement.servers} servers"
            yield "rollout", _nodes(*placement.server_nodes), f"{where}, {plan.request.gpus} GPUs each"
        if placement.idle_gpus:
            yield "idle", f"{placement.idle_gpus} GPUs", f"of {placement.nodes} x {plan.cluster.gpus_per_node}"

    return _pairs(f"Layout on {placement.nodes} x {plan.cluster.gpus_per_node} GPUs", rows())


def _nodes(first: int, last: int) -> str:
    return f"node {first}" if first == last else f"nodes {first}-{last}"


def _memory_table(plan: RunPlan) -> Table:
    unit, table = _unit(plan), Table(title="Memory of a trainer's GPU, by pipeline stage", title_justify="left")
    table.add_column()
    for stage in plan.stages:
        table.add_column(f"stage {stage.stage}", justify="right", no_wrap=True)
    recompute = {"none": "nothing", "selective": "attention", "full": "layers"}[plan.settings.recompute]
    whose = "; of all micro-batches" if plan.settings.defers else ""
    table.add_row("layers", *(str(stage.num_layers) for stage in plan.stages))
    table.add_row("parameters", *(f"{stage.num_parameters / 1e6:,.1f} M" for stage in plan.stages))
    rows = {
        "weights": "weights",
        "gradients, float32": "gradients",
        f"optimizer, over {plan.layout.optimizer_shards} ranks": "optimizer",
        "reference weights": "reference",
        "communication buffers": "communication",
        f"activations, {recompute} recomputed{whose}": "activations",
        "logits, their gradient and entropy": "logits",
        "or: work of a layer's backward pass": "layer_work",
        "or: weights on their way to servers": "push",
        "or: optimizer state gathered to be saved": "save",
        "or: reference pass": "swap",
    }
    for name, field in rows.items():
        cells = [_cell(stage, field, unit) for stage in plan.stages]
        if any(cell != "-" for cell in cells):
            table.add_row(name, *cells)
    table.add_section()
    table.add_row("fullest moment", *(Text(_memory(stage.peak, unit), style="bold") for stage in plan.stages))
    table.add_row("of a GPU's", *(_memory(plan.cluster.usable_bytes, unit) for _ in plan.stages))
    table.add_row("main memory for a checkpoint", *(_cell(stage, "staging", unit) for stage in plan.stages))
    return table


def _cell(stage: StageMemory, name: str, unit: int) -> str:
    value: int = getattr(stage, name)
    return _memory(value, unit) if value else "-"


def _server_table(plan: RunPlan) -> Table:
    server, request, servers = plan.server, plan.request, plan.placement.servers
    assert server is not None and request is not None

    def rows() -> Iterator[tuple[str, str, str]]:
        yield "weights", _memory(server.weights, GIB), f"of each of {request.gpus} GPUs"
        yield "keys and values", _memory(max(0, server.key_value), GIB), f"{server.token_bytes:,} bytes a token"
        yield "CUDA graphs, prefill", _memory(server.rest, GIB), "what mem-fraction-static leaves"
        yield "tokens", f"{server.tokens:,}", f"in each server, {server.tokens * servers:,} in all"
        yield "longest sequences", f"{server.sequences:,}", f"in each server, {server.sequences * servers:,} in all"
        at_once = min(plan.config.rollout.max_concurrency, plan.batch_plan.sequences)
        yield "asked for at a time", f"{at_once:,}", "of all servers, of any length; what does not fit waits"

    return _pairs("Memory of a rollout server's GPU", rows())
