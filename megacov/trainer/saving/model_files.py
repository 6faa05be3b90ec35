"""The files of the model folder that a run reads again when it is resumed, as digests for its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megacov.config import RunConfig
from megacov.errors import DataError
from megacov.json_text import read_json
from megacov.megatron.weight_digests import combine, hash_tensors
from megacov.parallel.groups import ParallelGroups
from megacov.trainer.agreement import from_rank_zero, gather, on_every_rank, on_rank_zero

_TOKENIZER_CONFIG = "tokenizer_config.json"
_TOKENIZER_STARTS = ("tokenizer", "special_tokens_map", "added_tokens", "vocab", "merges", "tekken")
_TOKENIZER_SUFFIXES = (".model", ".tiktoken")
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

# What a change means for the run, by the name that --allow takes.
_MEANINGS = {
    "model.weights": "holds other weights than those the run began with, which are its reference",
    "model.chat_template": "has another chat template",
    "model.generation": "has other generation settings (generation_config.json, token ids of config.json)",
}


def read_model_files(config: RunConfig, groups: ParallelGroups) -> dict[str, Any]:
    """Read the digests of what a resumed run reads again from model.path.

    The weights count only where they are the reference of `algorithm.ref_kl_coef`: otherwise those of the checkpoint
    replace them. Every rank reads a share of them. Collectives: control.

    Args:
        config: configuration of the run.
        groups: process groups of this rank.

    Returns:
        JSON values by the name that --allow takes, the same on all ranks; `model.tokenizer` is sha256 by file, and the
        others are a sha256, or None where the run does not use it.

    Raises:
        DataError: a file cannot be read; raised on all ranks.
    """
    weights = _hash_weights(config.model.path, groups) if config.algorithm.ref_kl_coef > 0 else None
    small = on_rank_zero(lambda: small_model_files(config), groups)
    return {"model.weights": weights, **from_rank_zero(small or {}, groups)}


def _hash_weights(folder: Path, groups: ParallelGroups) -> str:
    rank, num_ranks = groups.world_rank, groups.world_size
    own = on_every_rank(lambda: hash_tensors(folder, share=rank, num_shares=num_ranks), groups)
    parts = gather(own, groups)
    return combine({name: digest for part in parts for name, digest in part.items()})


def small_model_files(config: RunConfig) -> dict[str, Any]:
    """As `read_model_files`, without the weights and on this process alone."""
    folder = config.model.path
    try:
        tokenizer_config = _read_json(folder / _TOKENIZER_CONFIG)
        inline_template = tokenizer_config.pop("chat_template", None)
        files = sorted(path for path in folder.iterdir() if path.is_file() and _is_of_tokenizer(path))
        tokenizer = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
        if tokenizer_config:
            # Without the chat template, which is compared for itself, and only by runs that apply one.
            tokenizer[_TOKENIZER_CONFIG] = _hash_json(tokenizer_config)
        templates = sorted([*folder.glob("chat_template.jinja"), *folder.glob("additional_chat_templates/*.jinja")])
        # Files win over the entry in tokenizer_config.json, as in transformers.
        template = {path.name: path.read_text(encoding="utf-8") for path in templates} or inline_template
        generation, model = _read_json(folder / "generation_config.json"), _read_json(folder / "config.json")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"the files of {folder} cannot be read: {error}.") from error
    generation.pop("transformers_version", None)
    return {
        "model.tokenizer": tokenizer,
        "model.chat_template": _hash_json(template) if config.data.chat_template else None,
        "model.generation": _hash_json([generation, {name: model.get(name) for name in _TOKEN_IDS}]),
    }


def changed_model_files(saved: Mapping[str, Any], now: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Compare the model folder with a checkpoint.

    Args:
        saved: result of `read_model_files` in the checkpoint; empty in checkpoints of older versions of megacov.
        now: result of `read_model_files` now; names that it lacks are not compared.
        folder: the model folder now.

    Returns:
        Name that --allow takes -> phrase that begins with it and describes the change.
    """
    found = {}
    for name, meaning in _MEANINGS.items():
        # None on one side: another setting decides whether it is used, and is compared for itself.
        if saved.get(name) is not None and now.get(name) is not None and saved[name] != now[name]:
            found[name] = f"{name}: model.path {folder} {meaning}"
    before, after = saved.get("model.tokenizer"), now.get("model.tokenizer")
    if before is not None and after is not None and before != after:
        files = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
        found["model.tokenizer"] = f"model.tokenizer: model.path {folder} has another {', '.join(files)}"
    return found


def _is_of_tokenizer(path: Path) -> bool:
    return path.name.startswith(_TOKENIZER_STARTS) or path.suffix in _TOKENIZER_SUFFIXES


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if there is no such file."""
    if not path.is_file():
        return {}
    values = read_json(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path.name} holds no JSON object")
    return values


def _hash_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
