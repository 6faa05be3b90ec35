"""Turns a model's id on the Hugging Face Hub into a folder, before anything reads `model.path`."""

from __future__ import annotations

import json

from megacov.config import RunConfig
from megacov.launch import RankEnvironment
from megacov.plan.hub import download_model, find_model, hub_id, wait_for_model


def with_local_model(
    config: RunConfig, place: RankEnvironment | None = None, *, downloads: bool = True
) -> tuple[RunConfig, list[str]]:
    """Download the model that `model.path` names by its id, if it does.

    On each node one process downloads, and the other ranks wait for it.

    Args:
        config: configuration that has passed the rules.
        place: the rank that this process is; None if it is none.
        downloads: whether to download what is not in the local cache; otherwise that is an error.

    Returns:
        The configuration with the model's folder as `model.path` and its commit as `model.revision`, and the overrides
        that say the same; the configuration as it is and no override for a folder.

    Raises:
        DataError: the model could not, or may not, be downloaded.
    """
    model = config.model
    model_id = hub_id(model.path)
    if model_id is None:
        return config, []
    if not downloads:
        folder = find_model(model_id, model.revision)
    elif place is None or place.local_rank == 0:
        folder = download_model(model_id, model.revision)
        if place is None or place.rank == 0:
            print(f"megacov: {model_id} is in {folder}", flush=True)
    else:
        folder = wait_for_model(model_id, model.revision, timeout_s=config.parallel.control_timeout_s)
    values = {"path": folder, "revision": folder.name}
    overrides = [f"model.{name}={json.dumps(str(value))}" for name, value in values.items()]
    return config.model_copy(update={"model": model.model_copy(update=values)}), overrides
