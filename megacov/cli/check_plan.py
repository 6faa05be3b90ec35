"""From a configuration to the plan of its run. Only this file reads the configuration; `megacov.plan` does not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from megacov.cli.server_layout import (
    check_server_numbers,
    longest_of,
    server_arguments,
    server_request,
    servers_are_foreign,
    too_long,
)
from megacov.config import RunConfig, check_experts, check_model
from megacov.config.rules import check_rules
from megacov.errors import ConfigError, DataError
from megacov.plan import (
    Batch,
    BatchPlan,
    Cluster,
    Layout,
    ModelSizes,
    Placement,
    Search,
    ServerMemory,
    ServerRequest,
    StageMemory,
    TrainerSettings,
    place,
    plan_batch,
    plan_server,
    plan_trainer,
    read_model_sizes,
    suggest,
    suggest_more_gpus,
)
from megacov.plan.activations import Recompute
from megacov.plan.hub import find_model, hub_id
from megacov.plan.servers import STATIC_FRACTION
from megacov.plan.weight_parts import ServerLayout, check_servers

GIB = 2**30


@dataclass(frozen=True)
class RunPlan:
    """Everything a run needs. `request` and `server` are None if no rollout server takes a GPU."""

    config: RunConfig
    model_file: Path
    sizes: ModelSizes
    layout: Layout
    cluster: Cluster
    batch: Batch
    batch_plan: BatchPlan
    settings: TrainerSettings
    placement: Placement
    stages: list[StageMemory]
    request: ServerRequest | None
    server: ServerMemory | None

    @property
    def staging(self) -> int:
        """Main memory that the ranks of a node take for a checkpoint. [bytes]"""
        return min(self.cluster.gpus_per_node, self.layout.world_size) * max(stage.staging for stage in self.stages)

    def search(self) -> Search:
        """Layouts of the same GPUs."""
        return suggest(self.sizes, self.layout, self.batch, self.settings, self.cluster, why_not=self._why_not)

    def search_more_gpus(self) -> Search | None:
        """Layouts of the least number of GPUs, above this one, that fit."""
        return suggest_more_gpus(
            self.sizes, self.layout, self.batch, self.settings, self.cluster, why_not=self._why_not
        )

    def _why_not(
        self, layout: Layout, recompute: Recompute, micro_batch_tokens: int, stages: Sequence[StageMemory]
    ) -> str | None:
        config = self.config.model_copy(
            update={
                "parallel": self.config.parallel.model_copy(update=asdict(layout)),
                "batch": self.config.batch.model_copy(update={"micro_batch_tokens": micro_batch_tokens}),
                "model": self.config.model.model_copy(update={"recompute": recompute}),
            }
        )
        try:
            check_rules(config)
        except ConfigError as error:
            return str(error)
        return next(_trainer_problems(replace(self, config=config, layout=layout, stages=list(stages))), None)


def plan_run(config: RunConfig) -> RunPlan:
    """Plan a run.

    Args:
        config: configuration that has passed the rules.

    Returns:
        The plan, whether it fits or not.

    Raises:
        DataError: there is no model to read sizes from.
        ConfigError: the model does not allow this layout, the nodes have too few GPUs, or an option of the servers has
            no meaning.
    """
    check_server_numbers(config)
    model_file = _model_file(config)
    sizes, parallel = read_model_sizes(model_file), config.parallel
    check_model(
        num_attention_heads=sizes.num_attention_heads,
        num_key_value_heads=sizes.num_key_value_heads,
        num_layers=sizes.num_layers,
        # Experts are never split, and 0 columns can be split over any number of ranks.
        ffn_hidden_size=0 if sizes.num_experts else sizes.ffn_hidden_size,
        tensor=parallel.tensor,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
    )
    experts = sizes.num_experts or None
    check_experts(num_experts=experts, expert=parallel.expert, tensor=parallel.tensor, sequence=parallel.sequence)
    layout, cluster, batch, settings = _layout(config), _cluster(config), _batch(config), _settings(config)
    request = server_request(config)
    if request is not None:
        check_servers(sizes, ServerLayout(1, request.tensor, request.expert))
    batch_plan = plan_batch(batch, layout)
    return RunPlan(
        config=config,
        model_file=model_file,
        sizes=sizes,
        layout=layout,
        cluster=cluster,
        batch=batch,
        batch_plan=batch_plan,
        settings=settings,
        placement=place(layout, cluster, request),
        stages=plan_trainer(sizes, layout, batch_plan, settings),
        request=request,
        server=None if request is None else _server(config, sizes, request, cluster),
    )


def plan_unsplit(config: RunConfig) -> RunPlan:
    """Plan the run on its GPUs, each of which has the whole model: a start for a search of layouts.

    Args:
        config: configuration that has passed the rules. More GPUs than a node has are rounded up to whole nodes.

    Returns:
        The plan, which hardly fits.

    Raises:
        DataError: there is no model to read sizes from.
        ConfigError: the servers cannot have that size.
    """
    gpus, per_node = config.world_size, config.cluster.gpus_per_node
    if gpus > per_node:
        gpus = -(-gpus // per_node) * per_node
    unsplit = config.parallel.model_copy(update=asdict(Layout(data=gpus)))
    cluster = config.cluster.model_copy(update={"nodes": None})
    return plan_run(config.model_copy(update={"parallel": unsplit, "cluster": cluster}))


def problems(plan: RunPlan) -> Iterator[str]:
    """Yield a sentence for each reason why a run does not fit."""
    yield from memory_problems(plan)
    longest, window = longest_of(plan.config), plan.sizes.sliding_window
    if not servers_are_foreign(plan.config):
        yield from too_long(plan.config, plan.sizes)
    if window is not None and longest > window:
        yield (
            f"data.max_prompt_length + rollout.max_response_length is {longest} and the model attends through a "
            f"sliding window of {window} tokens: lower them to fit into it."
        )


def memory_problems(plan: RunPlan) -> Iterator[str]:
    """Problems of memory, which is estimated."""
    yield from _trainer_problems(plan)
    server, longest = plan.server, longest_of(plan.config)
    if plan.request is not None and server is not None and server.sequences == 0:
        yield (
            f"a server of {plan.request.gpus} GPUs has {max(0, server.key_value) / GIB:.1f} GiB a GPU for keys and "
            f"values beside {server.weights / GIB:.1f} GiB of weights, too little for one sequence of "
            f"{longest} tokens: raise rollout.server_arguments.tp-size or mem-fraction-static."
        )


def _trainer_problems(plan: RunPlan) -> Iterator[str]:
    """Problems that another layout of the trainer may solve."""
    cluster, server = plan.cluster, plan.server
    fullest = max(plan.stages, key=lambda stage: stage.peak)
    limit = f"{cluster.usable_bytes / GIB:.1f} GiB (cluster.gpu_memory_gib less cluster.gpu_reserve_gib)"
    if fullest.peak > cluster.usable_bytes:
        yield (
            f"a GPU of pipeline stage {fullest.stage} needs {fullest.peak / GIB:.1f} GiB and has {limit}: change the "
            "layout, as `megacov check --suggest` shows."
        )
    if plan.staging > cluster.node_bytes:
        yield (
            f"a checkpoint takes {plan.staging / GIB:.0f} GiB of a node's main memory and cluster.node_memory_gib is "
            f"{cluster.node_bytes / GIB:.0f}: raise parallel.data, which spreads the optimizer over more ranks."
        )
    if plan.request is None or server is None or not plan.request.colocated:
        return
    static = server.weights + server.key_value
    fullest = max(plan.stages, key=lambda stage: stage.resident)
    if fullest.resident + static > cluster.usable_bytes:
        yield (
            f"while servers sample, the trainer keeps {fullest.resident / GIB:.1f} GiB and a server takes "
            f"{static / GIB:.1f} GiB of the same GPU, which has {limit}: lower "
            "rollout.server_arguments.mem-fraction-static."
        )


def _model_file(config: RunConfig) -> Path:
    of_path, named = config.model.path / "config.json", config.model.config_file
    if of_path.is_file():
        return of_path
    if named is None and (model_id := hub_id(config.model.path)) is not None:
        return find_model(model_id, config.model.revision) / "config.json"
    if named is None:
        raise DataError(
            f"model.path is {config.model.path}, which has no config.json: correct it, or set model.config_file to "
            "that of the model."
        )
    return named


def _layout(config: RunConfig) -> Layout:
    parallel = config.parallel
    return Layout(
        tensor=parallel.tensor,
        sequence=parallel.sequence,
        pipeline=parallel.pipeline,
        virtual_pipeline=parallel.virtual_pipeline,
        context=parallel.context,
        expert=parallel.expert,
        data=parallel.data,
    )


def _cluster(config: RunConfig) -> Cluster:
    cluster = config.cluster
    return Cluster(
        nodes=cluster.nodes,
        gpus_per_node=cluster.gpus_per_node,
        gpu_bytes=int(cluster.gpu_memory_gib * GIB),
        reserved_bytes=int(cluster.gpu_reserve_gib * GIB),
        node_bytes=int(cluster.node_memory_gib * GIB),
    )


def _batch(config: RunConfig) -> Batch:
    return Batch(
        prompts=config.rollout.prompts_per_step,
        samples_per_prompt=max(config.group_sizes),
        max_prompt_length=config.data.max_prompt_length,
        max_response_length=config.rollout.max_response_length,
        updates=config.batch.updates_per_rollout,
        micro_batch_tokens=config.batch.micro_batch_tokens,
        steps=config.run.steps,
    )


def _settings(config: RunConfig) -> TrainerSettings:
    sync = config.weight_sync
    return TrainerSettings(
        value_bytes=_value_bytes(config),
        recompute=config.model.recompute,
        fused=config.model.transformer_engine != "off",
        vocab_divisible_by=config.model.vocab_divisible_by,
        with_reference=config.algorithm.ref_kl_coef > 0,
        bucket_bytes=sync.bucket_bytes if sync.traits.in_buckets else 0,
        saves=config.checkpoint.every > 0,
        defers=config.defers_backwards,
        fused_output=config.model.fused_output,
        gathers=sync.traits.loader is None,
    )


def _value_bytes(config: RunConfig) -> int:
    return 2 if config.model.dtype == "bfloat16" else 4


def _server(config: RunConfig, sizes: ModelSizes, request: ServerRequest, cluster: Cluster) -> ServerMemory:
    return plan_server(
        sizes,
        tensor=request.tensor,
        gpu_bytes=cluster.gpu_bytes,
        static_fraction=float(server_arguments(config).get("mem-fraction-static", STATIC_FRACTION)),
        value_bytes=_value_bytes(config),
        longest=longest_of(config),
    )
