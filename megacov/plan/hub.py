"""Models that are named by their id on the Hugging Face Hub, such as Qwen/Qwen2.5-32B, and not by a folder."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path

from megacov.errors import DataError

# Weights in safetensors, configuration, tokenizer and chat templates: never pickles, and no code.
INCLUDED = ("*.safetensors", "*.json", "*.jinja", "*.model", "*.txt")
EXCLUDED = ("consolidated*", "original/*", "onnx/*")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_PAGES = ("models", "datasets", "spaces")  # pages of the Hub, so no organization has such a name
_POLL_S = 1.0


def hub_id(path: Path) -> str | None:
    """The id on the Hub that a model path can be, as in org/name; None for what is, or looks like, a local path."""
    text = str(path)
    if not _ID.fullmatch(text) or path.parts[0] in _PAGES or os.path.exists(path) or os.path.isdir(path.parent):
        return None
    return text


def cached_model(model_id: str, revision: str | None) -> Path | None:
    """Find a whole model in the local cache of the Hub, without the network; None if it is not there."""
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            model_id,
            revision=revision,
            allow_patterns=list(INCLUDED),
            ignore_patterns=list(EXCLUDED),
            local_files_only=True,
        )
    except (OSError, ValueError):
        return None
    return Path(folder) if Path(folder, "config.json").is_file() else None


def download_model(model_id: str, revision: str | None) -> Path:
    """Download a model from the Hub into the local cache, unless it is there.

    Several processes may do so at once: the Hub's client locks each file. Its variables hold, such as HF_HOME,
    HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE.

    Args:
        model_id: id on the Hub, as in org/name.
        revision: branch, tag or commit; None for the main branch.

    Returns:
        Folder of the model in the cache, whose name is the commit.

    Raises:
        DataError: it could not be downloaded; the sentence has the command to run elsewhere.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP client, whichever that is

    try:
        folder = snapshot_download(
            model_id, revision=revision, allow_patterns=list(INCLUDED), ignore_patterns=list(EXCLUDED)
        )
    except (OSError, ValueError, HTTPError) as error:
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise DataError(_elsewhere(model_id, revision, f"could not be downloaded: {reason.rstrip('.')}")) from error
    if not Path(folder, "config.json").is_file():
        raise DataError(f"model.path is {model_id}: on the Hugging Face Hub it has no config.json, so it is no model.")
    return Path(folder)


def wait_for_model(model_id: str, revision: str | None, *, timeout_s: float) -> Path:
    """Wait until another process has downloaded a model into the local cache.

    Args:
        model_id: id on the Hub, as in org/name.
        revision: branch, tag or commit; None for the main branch.
        timeout_s: longest time. [s]

    Returns:
        Folder of the model in the cache.

    Raises:
        DataError: it was not there in time.
    """
    deadline = time.monotonic() + timeout_s
    while (folder := cached_model(model_id, revision)) is None:
        if time.monotonic() >= deadline:
            reason = f"was not downloaded by the first rank of this node within {timeout_s:g} s"
            raise DataError(_elsewhere(model_id, revision, reason))
        time.sleep(_POLL_S)
    return folder


def find_model(model_id: str, revision: str | None) -> Path:
    """Find a model in the local cache of the Hub; raises DataError with the command that downloads it elsewhere."""
    folder = cached_model(model_id, revision)
    if folder is None:
        raise DataError(
            _elsewhere(
                model_id,
                revision,
                "is not in the local cache, and nothing was downloaded (`megacov train` and `megacov launch` do that)",
            )
        )
    return folder


def download_command(model_id: str, revision: str | None) -> str:
    """The command that downloads a model into a folder of its name."""
    patterns = [f'--include "{each}"' for each in INCLUDED] + [f'--exclude "{each}"' for each in EXCLUDED]
    chosen = [f"--revision {revision}"] if revision else []
    return " ".join(["hf download", model_id, *chosen, f"--local-dir {model_id.rpartition('/')[2]}", *patterns])


def _elsewhere(model_id: str, revision: str | None, reason: str) -> str:
    return (
        f"model.path is {model_id}: there is no such folder, and as a model on the Hugging Face Hub it {reason}; where "
        f"there is a network run `{download_command(model_id, revision)}`, copy the folder here, and set model.path "
        "to it."
    )
