"""The configuration of a run: a schema, rules between its fields, and the way from YAML files to one frozen record.

Nothing here imports torch: configurations are read and checked on login nodes.
"""

from __future__ import annotations

from megacov.config.advice import config_warnings
from megacov.config.editor_schema import editor_schema
from megacov.config.load import (
    dump_config,
    load_config,
    load_sweep,
    make_config,
    make_data_config,
    write_override,
)
from megacov.config.model_split import check_experts, check_model, fuses_output
from megacov.config.schema import RunConfig

__all__ = [
    "RunConfig",
    "check_experts",
    "check_model",
    "config_warnings",
    "dump_config",
    "editor_schema",
    "fuses_output",
    "load_config",
    "load_sweep",
    "make_config",
    "make_data_config",
    "write_override",
]
