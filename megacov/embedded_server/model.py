"""Open a Hugging Face model folder for generation on the CPU."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from megacov.embedded_server.startup import check_model_folder
from megacov.errors import DataError
from megacov.plan.model_sizes import read_model_values

ModelDtype = Literal["auto", "float32", "bfloat16"]

# transformers works on the files before it has checked them, and raises what comes of that.
_FAULTS_OF_FILES = (
    ArithmeticError,
    AttributeError,
    LookupError,
    OSError,
    RuntimeError,
    SafetensorError,
    StrictDataclassError,
    TypeError,
    ValueError,
)
_ATTENTION_KINDS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model, its tokenizer, and the limits of requests in tokens."""

    folder: Path
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    eos_token_ids: frozenset[int]
    vocab_size: int
    context_length: int


def load_model(folder: Path, *, dtype: ModelDtype) -> ServedModel:
    """Load model and tokenizer. No code from the folder is run.

    Args:
        folder: Hugging Face model folder with safetensors.
        dtype: type of the weights in memory; auto takes the one in config.json.

    Returns:
        The model in eval mode on the CPU.

    Raises:
        DataError: the folder is unusable.
    """
    check_model_folder(folder)
    read_model_values(folder / "config.json")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()  # the checks below replace its warnings
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype="auto" if dtype == "auto" else getattr(torch, dtype),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except _FAULTS_OF_FILES as error:
        raise DataError(f"{folder} cannot be loaded as a model: {_first_line(error)}") from error
    _check_weights(folder, missing=report["missing_keys"], mismatched=report["mismatched_keys"])
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"The tokenizer in {folder} has {len(tokenizer)} tokens but the model's vocabulary has {vocab_size}; "
            "save the tokenizer that belongs to the model."
        )
    unknown_layers = set(getattr(config, "layer_types", None) or ()) - _ATTENTION_KINDS
    if unknown_layers:
        raise DataError(
            f"The model in {folder} has layers of kind {', '.join(sorted(unknown_layers))}; the embedded server runs "
            "attention layers only, so serve it with SGLang."
        )
    return ServedModel(
        folder=folder,
        model=model.eval().requires_grad_(False),
        tokenizer=tokenizer,
        eos_token_ids=_eos_token_ids(model, tokenizer),
        vocab_size=vocab_size,
        context_length=int(config.max_position_embeddings),
    )


def _check_weights(folder: Path, *, missing: set[str], mismatched: set[tuple[str, torch.Size, torch.Size]]) -> None:
    """Refuse weights that transformers would replace by random values."""
    if mismatched:
        name, found, expected = min(mismatched)
        raise DataError(
            f"{name} has shape {tuple(found)} in {folder} but {tuple(expected)} by its config.json; "
            "save weights and configuration of the same model."
        )
    if missing:
        raise DataError(f"{folder} lacks the weight {min(missing)}; save the whole model.")


def _eos_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Every id that ends a completion: the model's, the generation config's and the tokenizer's."""
    ids: set[int] = set()
    for value in (model.config.eos_token_id, model.generation_config.eos_token_id, tokenizer.eos_token_id):
        ids.update(value if isinstance(value, list) else [] if value is None else [value])
    return frozenset(ids)


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
