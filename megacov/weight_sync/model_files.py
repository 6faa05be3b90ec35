"""Everything in a model folder that is neither weights nor code: configuration, tokenizer, chat templates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from megacov.checkpoint.manifest import MANIFEST_NAME
from megacov.json_text import read_json

_SUFFIXES = frozenset({".json", ".jinja", ".model", ".txt"})
_TEMPLATES = "additional_chat_templates"
_CONFIG_FILE = "config.json"
# These describe other weights, which are not copied: Mistral's and Meta's own, quantized ones, and files by sha256.
_OF_OTHER_WEIGHTS = frozenset(
    {"params.json", "adapter_config.json", "hf_quant_config.json", "quantize_config.json", MANIFEST_NAME}
)
_INDEX_SUFFIX = ".index.json"


def copy_model_files(source_model: Path, folder: Path) -> None:
    """Copy configuration, tokenizer and chat templates of a model, but nothing that describes files of weights.

    Args:
        source_model: model folder to copy from.
        folder: existing folder to copy to.

    Raises:
        OSError: a file cannot be read or written.
    """
    for file in sorted(source_model.iterdir()):
        is_of_weights = file.name.endswith(_INDEX_SUFFIX) or file.name in _OF_OTHER_WEIGHTS
        if file.is_file() and file.suffix in _SUFFIXES and not is_of_weights:
            shutil.copyfile(file, folder / file.name)
    templates = sorted((source_model / _TEMPLATES).glob("*.jinja"))
    if templates:
        (folder / _TEMPLATES).mkdir()
    for file in templates:
        shutil.copyfile(file, folder / _TEMPLATES / file.name)


def write_dtype(folder: Path, dtype: str) -> None:
    """Make config.json name the dtype of the weights; does nothing where there is no config.json.

    transformers loads weights in the dtype that is named there. Since release 4.56 its key is `dtype`; every release
    reads the older `torch_dtype`, which stays where it was.

    Args:
        folder: model folder.
        dtype: as torch writes it, without `torch.`, such as "bfloat16".

    Raises:
        OSError: the file cannot be read or written.
        ValueError: it is not JSON.
    """
    file = folder / _CONFIG_FILE
    if not file.is_file():
        return
    values: dict[str, Any] = read_json(file)
    keys = [key for key in ("dtype", "torch_dtype") if key in values] or ["dtype"]
    file.write_text(json.dumps(values | dict.fromkeys(keys, dtype), indent=2) + "\n", encoding="utf-8")
