"""Loads the tokenizer of a model folder and checks it against the model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from megacov.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_FAULTS_OF_FILES = (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)


def load_tokenizer(model_path: str | Path, *, vocab_size: int) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a Hugging Face model folder and check that the model's vocabulary covers it.

    Args:
        model_path: folder with the tokenizer's files.
        vocab_size: rows of the model's embedding, before any padding for tensor parallelism.

    Returns:
        The tokenizer.

    Raises:
        DataError: the folder or its tokenizer is missing or broken, or the tokenizer has more tokens than the model.
    """
    from transformers import AutoTokenizer  # imported here because it takes seconds

    if not Path(model_path).is_dir():
        raise DataError(f"There is no model folder {model_path}; set model.path to a Hugging Face model folder.")
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(model_path, local_files_only=True)
    except Exception as error:
        # transformers works on the files before it has checked them, and the Rust library raises plain Exceptions.
        if type(error) is not Exception and not isinstance(error, _FAULTS_OF_FILES):
            raise
        reason = str(error).strip().partition("\n")[0][:200]
        raise _no_tokenizer(model_path, reason or type(error).__name__) from error
    # If its files are missing but config.json exists, transformers 5 returns a tokenizer without a vocabulary.
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise _no_tokenizer(model_path, "its vocabulary is empty")
    if len(tokenizer) > vocab_size:
        raise DataError(
            f"The tokenizer in {model_path} has {len(tokenizer)} tokens and its model only {vocab_size}; "
            "use the tokenizer that belongs to the model."
        )
    return tokenizer


def _no_tokenizer(model_path: str | Path, reason: str) -> DataError:
    return DataError(
        f"The model folder {model_path} holds no tokenizer that transformers can load ({reason}); "
        "copy the tokenizer's files of the model into it."
    )
