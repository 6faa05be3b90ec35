"""Refuses quantized models, whose weights are not read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacov.errors import ConfigError

_KEYS = ("quantization_config", "compression_config")  # the second is an older name, of compressed-tensors
_FILE = "hf_quant_config.json"  # of NVIDIA's Model Optimizer; SGLang reads it


def refuse_quantized(values: Mapping[str, Any], *, config_file: Path) -> None:
    """Check that a model is not quantized, whatever the method, and whether or not its files hold scales.

    Args:
        values: content of the model's config.json.
        config_file: path of that file.

    Raises:
        ConfigError: names the method.
    """
    for key in _KEYS:
        settings = values.get(key)
        if settings:
            method = settings.get("quant_method") or settings.get("format") if isinstance(settings, Mapping) else None
            named = str(method)[:60] if method else "a method without a name"
            raise ConfigError(
                f"{config_file}: {key} says that the weights are quantized by {named}, which cannot be trained: take "
                "the model that is not quantized."
            )
    if config_file.with_name(_FILE).is_file():
        raise ConfigError(
            f"{config_file.with_name(_FILE)} says that the weights are quantized, and those cannot be trained: take "
            "the model that is not quantized."
        )
