"""Whether a rollout server can do what a run asks of it."""

from __future__ import annotations

from collections.abc import Sequence

from megacov.config import RunConfig
from megacov.errors import DataError
from megacov.rollout import Capabilities, UnusableServerError, refuse_unsafe, version_warning
from megacov.weight_sync import why_out_of_reach


def check_server(config: RunConfig, capabilities: Capabilities, *, address: str, is_own: bool) -> None:
    """Refuse a server that cannot be used, and warn of one that should not be.

    Args:
        config: the run's configuration.
        capabilities: what the server can do.
        address: URL of the server.
        is_own: whether the trainer started it.

    Raises:
        UnusableServerError: the server cannot be used.
    """
    if is_own:
        refuse_unsafe(capabilities.version, server=address)
    warning = version_warning(capabilities.version, server=address)
    if warning is not None:
        print(f"megacov: {warning}", flush=True)
    why = why_out_of_reach(config.weight_sync, capabilities, address)
    if why is not None:
        raise UnusableServerError(why)
    if config.rollout.colocated and not capabilities.memory_saver:
        raise UnusableServerError(
            f"rollout.colocated is true and {address} cannot give its memory back: start it with --enable-memory-saver "
            "on a GPU (with the package torch_memory_saver), or set rollout.colocated=false."
        )


def check_stop_tokens(ids: Sequence[int], *, vocab_size: int) -> None:
    """Refuse `rollout.stop_token_ids` that no response can hold.

    Args:
        ids: the setting.
        vocab_size: rows of the model's embedding.

    Raises:
        DataError: names the first id outside the vocabulary.
    """
    outside = next((token for token in ids if token >= vocab_size), None)
    if outside is not None:
        raise DataError(
            f"rollout.stop_token_ids holds {outside}, and the model's vocabulary has {vocab_size} tokens: correct it."
        )
