"""What every checkpoint of a run records about it: configuration, layout, sizes of the model, digests of its input."""

from __future__ import annotations

from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from megacov.config import RunConfig
from megacov.data.files import digest_of
from megacov.megatron.model_shape import ModelShape
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.prompts import hash_files
from megacov.trainer.run_folder import with_absolute_paths
from megacov.trainer.saving.checkpointing import FORMAT
from megacov.trainer.saving.model_files import read_model_files


def layout_of(config: RunConfig) -> dict[str, int]:
    """Sizes of a run's layout, by their names in the configuration."""
    parallel = config.parallel
    names = ("tensor", "pipeline", "virtual_pipeline", "context", "data", "expert")
    return {name: getattr(parallel, name) for name in names}


def describe_run(config: RunConfig, shape: ModelShape, groups: ParallelGroups) -> dict[str, Any]:
    """The JSON values that every checkpoint of a run records about it; empty off rank 0. Collectives: control."""
    model_files = read_model_files(config, groups)
    if groups.world_rank != 0:
        return {}
    files = hash_files(config)
    return {
        "format": FORMAT,
        "config": with_absolute_paths(config).model_dump(mode="json"),
        "shape": asdict(shape),
        "model_files": model_files,
        "layout": layout_of(config),
        "prompts_sha256": digest_of(file.sha256 for file in files),
        "prompt_files": [asdict(file) for file in files],
        "versions": {name: version(name) for name in ("megacov", "megatron-core", "torch")},
    }
