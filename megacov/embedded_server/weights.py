"""Loads new weights from a folder of safetensors into a running model, all of them or none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from megacov.json_text import read_json

_MAX_INDEX_BYTES = 64 * 2**20
_SINGLE_FILE = "model.safetensors"
_INDEX_FILE = "model.safetensors.index.json"


class WeightsDoNotFitError(Exception):
    """The folder is unreadable, or its tensors do not fit the model. The model is unchanged."""


@dataclass(frozen=True, slots=True)
class WeightUpdate:
    """A folder of weights to load.

    version: new version; None keeps the current one.
    flushes_cache: whether cached keys and values must be dropped.
    on_done: called once, with success and a sentence.
    """

    folder: Path
    version: str | None
    flushes_cache: bool
    on_done: Callable[[bool, str], None]


def load_weights(model: nn.Module, folder: Path) -> None:
    """Replace every parameter by the tensor of the same name.

    Names and shapes are checked from the file headers, then all tensors are read, and only then is the model changed.
    Values are cast to the parameter's dtype.

    Args:
        model: model to change, if everything fits.
        folder: folder with `model.safetensors`, or with several files and `model.safetensors.index.json`.

    Raises:
        WeightsDoNotFitError: the weights do not fit; the model is unchanged.
    """
    parameters = _named_as_in_files(model)
    try:
        files = _files_of(folder)
        names_in = {file: _checked_names(file, parameters) for file in files}
        tensors: dict[str, Tensor] = {}
        for file, names in names_in.items():
            with safe_open(file, framework="pt") as opened:
                tensors.update({name: opened.get_tensor(name) for name in names})
    except (OSError, SafetensorError, LookupError, RuntimeError, TypeError, ValueError) as error:
        # Beside OSError: an index that is not JSON, a path with a NUL, a dtype that torch does not have.
        raise WeightsDoNotFitError(f"The weights in {folder} cannot be read: {error}.") from error
    _check_complete(folder, tensors, parameters)
    with torch.no_grad():
        for name, tensor in tensors.items():
            parameters[name].copy_(tensor)


def _named_as_in_files(model: nn.Module) -> dict[str, Tensor]:
    """Map names in a folder to parameters. Transformers stacks the experts of a layer; a folder holds them singly."""
    named: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        layer, dot, kind = name.rpartition("mlp.experts.")
        if not dot or kind not in ("gate_up_proj", "down_proj"):
            named[name] = parameter
            continue
        parts = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for expert, whole in enumerate(parameter.detach()):
            for part, values in zip(parts, whole.chunk(len(parts)), strict=True):
                named[f"{layer}mlp.experts.{expert}.{part}.weight"] = values
    return named


def _files_of(folder: Path) -> list[Path]:
    index = folder / _INDEX_FILE
    if index.is_file():
        content = read_json(index, max_bytes=_MAX_INDEX_BYTES)
        weight_map = content.get("weight_map") if isinstance(content, dict) else None
        names = set(_file_names(weight_map)) if isinstance(weight_map, dict) else set()
        if not names:
            raise WeightsDoNotFitError(f"{index} has no weight_map; write the weights again.")
        if wrong := next((name for name in names if Path(name).name != name or not name.isprintable()), None):
            raise WeightsDoNotFitError(f"{index} names {wrong[:60]!r}, which is no file of its folder.")
        files = [folder / name for name in sorted(names)]
    else:
        files = [folder / _SINGLE_FILE]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise WeightsDoNotFitError(f"{folder} has no {missing[0]}; give a folder of safetensors on this machine.")
    return files


def _file_names(weight_map: dict[str, Any]) -> Iterator[str]:
    for name, file in weight_map.items():
        if not isinstance(file, str) or not file:
            raise WeightsDoNotFitError(f"The index gives no file name for {name[:60]!r}; write the weights again.")
        yield file


def _checked_names(file: Path, parameters: dict[str, Tensor]) -> list[str]:
    with safe_open(file, framework="pt") as opened:
        names = list(opened.keys())
        for name in names:
            if name not in parameters:
                raise WeightsDoNotFitError(f"{file} has a tensor {name}, which the running model lacks.")
            shape, expected = tuple(opened.get_slice(name).get_shape()), tuple(parameters[name].shape)
            if shape != expected:
                raise WeightsDoNotFitError(f"{name} has shape {shape} in {file}, but {expected} in the running model.")
    return names


def _check_complete(folder: Path, tensors: dict[str, Tensor], parameters: dict[str, Tensor]) -> None:
    """Every parameter must be given under one of its names; tied ones may be given twice if the values agree."""
    given: dict[Tensor, str] = {}
    for name, tensor in tensors.items():
        first = given.setdefault(parameters[name], name)
        if first != name and not torch.equal(tensors[first], tensor):
            raise WeightsDoNotFitError(f"{first} and {name} are tied in the running model, but differ in {folder}.")
    missing = [name for name, parameter in parameters.items() if parameter not in given]
    if missing:
        raise WeightsDoNotFitError(f"{folder} lacks {len(missing)} weights of the running model, such as {missing[0]}.")
