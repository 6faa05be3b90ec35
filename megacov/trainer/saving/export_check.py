"""Compares a model folder with what transformers expects in it, by its configuration. Reads no weight."""

from __future__ import annotations

from pathlib import Path

import torch

from megacov.errors import CheckpointError
from megacov.megatron.hf_folder import HfFolder, TensorHeader

_DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16"}  # as safetensors names them


def check_as_transformers(folder: Path, *, dtype: torch.dtype) -> None:
    """Check that transformers would load the weights of a folder, all of them, in a dtype and without casting them.

    The model that transformers makes of config.json is on the meta device and takes no memory.

    Args:
        folder: model folder.
        dtype: dtype of the weights, float32 or bfloat16.

    Raises:
        CheckpointError: names a dtype, name or shape that differs.
        DataError: the files of weights cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.core_model_loading import revert_weight_conversion

    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    if config.dtype != dtype:
        raise _error(f"its config.json says {config.dtype}, and its weights are {dtype}")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    # In memory, transformers fuses the experts of a layer; the files hold them one by one.
    weights = revert_weight_conversion(model, model.state_dict())
    expected = {name: TensorHeader(tuple(tensor.shape), _DTYPES[dtype]) for name, tensor in weights.items()}
    found = HfFolder(folder).headers()
    missing = expected.keys() - found.keys() - set(model.all_tied_weights_keys)
    if missing:
        raise _error(f"it lacks {min(missing)}")
    for name, header in found.items():
        if name not in expected:
            raise _error(f"it holds {name}, which that model does not have")
        if header != expected[name]:
            wanted = expected[name]
            raise _error(f"{name} is {header.dtype} {header.shape}, and expected is {wanted.dtype} {wanted.shape}")


def _error(difference: str) -> CheckpointError:
    return CheckpointError(
        f"the export is not what transformers loads by its config.json: {difference}; was the folder in model.path "
        "changed since the run? Nothing was written."
    )
