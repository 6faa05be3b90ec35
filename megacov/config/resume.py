"""Settings that may differ between a run and its continuation: where and how it runs, but not what it computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic_core import to_jsonable_python

from megacov.config.messages import show
from megacov.config.schema import RunConfig
from megacov.config.section import Section

# Settings and whole sections that do not change the mathematics of a run, except for rounding. Paths are free because
# folders move; the content of the files is compared separately.
FREE = frozenset(
    {
        "run.name",
        "run.directory",
        "run.steps",
        "run.deterministic",
        "model.path",
        "model.revision",
        "model.config_file",
        "model.vocab_divisible_by",
        "model.transformer_engine",
        "model.recompute",
        "model.fused_output",
        "parallel",
        "data.path",
        "rewards.workers",
        "rewards.timeout_s",
        "rewards.start_timeout_s",
        "rewards.max_failed_share",
        "optimizer.max_skipped_updates",
        "rollout.engine",
        "rollout.addresses",
        "rollout.addresses_file",
        "rollout.keys_file",
        "rollout.servers",
        "rollout.server_command",
        "rollout.server_arguments",
        "rollout.server_environment",
        "rollout.server_devices",
        "rollout.colocated",
        "rollout.host",
        "rollout.port",
        "rollout.num_threads",
        "rollout.over_sample",
        "rollout.extra_prompts",
        "rollout.partial_after_s",
        "rollout.max_concurrency",
        "rollout.max_retries",
        "rollout.max_restarts",
        "rollout.request_timeout_s",
        "rollout.start_timeout_s",
        "batch.micro_batch_tokens",
        "batch.packed",
        "monitor",
        "evaluation",
        "weight_sync",
        "checkpoint",
        "cluster",
        "slurm",
    }
)


def contradictions(saved: Mapping[str, Any], config: RunConfig) -> dict[str, str]:
    """Find the settings that differ between a checkpoint and the run that continues from it.

    Args:
        saved: the configuration in the checkpoint, as JSON values.
        config: the configuration with which the run continues.

    Returns:
        section.key -> "section.key was A and is B".
    """
    # An empty mapping sets nothing; by its own name it would differ from one that holds something.
    after = {name: value for name, value in settings(config).items() if value != {}}
    # A setting that is newer than the checkpoint had no effect at that time, and its default has none now.
    before = {name: _default(name) for name in after} | {k: v for k, v in _leaves(saved) if v != {}}
    found = {
        name: f"{name} was {show(before.get(name))} and is {show(after.get(name))}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name) and not _is_free(name)
    }
    steps = before.get("run.steps")
    if config.optimizer.decay != "constant" and steps != config.run.steps:
        found["run.steps"] = (
            f"run.steps was {steps} and is {config.run.steps}, over which optimizer.decay stretches the learning rate"
        )
    return found


def settings(config: RunConfig) -> dict[str, Any]:
    """Every setting as section.key -> JSON value."""
    return dict(_leaves(config.model_dump(mode="json")))


def too_few_steps(config: RunConfig, *, done: int) -> str:
    """The sentence for a run that has done more steps than its configuration asks for."""
    return (
        f"run.steps is {config.run.steps}, and the run in {config.run.directory} has done {done} steps: set run.steps "
        f"higher, or export an earlier checkpoint with `megacov export --step`."
    )


def _default(name: str) -> Any:
    """JSON value of the default of a setting; None where there is none."""
    section, *keys = name.split(".")
    kind = RunConfig.model_fields[section].annotation
    field = getattr(kind, "model_fields", {}).get(keys[0]) if keys else None
    if field is None or field.is_required() or field.default_factory is not None:
        return None
    default = field.get_default()
    for key in keys[1:]:  # of a section inside, as in algorithm.advantages.name
        default = getattr(default, key) if isinstance(default, Section) and key in type(default).model_fields else None
    return to_jsonable_python(default)


def _is_free(name: str) -> bool:
    section, _, rest = name.partition(".")
    if section == "data" and rest.startswith("sources.") and ".verifier_arguments." not in rest:
        return rest.endswith(".path")  # as data.path; a source's name may hold dots, so the setting is found at the end
    return any(name == free or name.startswith(f"{free}.") for free in FREE)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if prefix + key == "data.sources":
            # By name, so that a contradiction names the source and its setting.
            yield "data.sources", [source["name"] for source in value]
            for source in value:
                yield from _leaves({k: v for k, v in source.items() if k != "name"}, f"data.sources.{source['name']}.")
        elif isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
