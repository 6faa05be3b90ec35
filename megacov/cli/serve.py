"""megacov serve: a rollout server for machines without a GPU."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Dtype(StrEnum):
    """Dtype of the weights in memory."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


def serve(
    model: Annotated[Path, typer.Argument(help="Hugging Face model folder with a tokenizer.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 30000,
    port_file: Annotated[Path | None, typer.Option(help="File that gets the port once requests are answered.")] = None,
    dtype: Annotated[Dtype, typer.Option(help="Dtype of the weights; auto takes that of config.json.")] = Dtype.FLOAT32,
    num_threads: Annotated[int, typer.Option(min=1, help="Threads of one torch operation.")] = 1,
    random_seed: Annotated[int, typer.Option(help="Seed of the sampled tokens.")] = 0,
    max_running_requests: Annotated[int, typer.Option(min=1, help="Completions that are generated at a time.")] = 512,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="One request at a time: equal seeds give equal bits, slowly.")
    ] = False,
    keys_file: Annotated[
        Path | None,
        typer.Option(help="YAML file with api-key and admin-api-key that requests must carry; only you may read it."),
    ] = None,
    parent_pid: Annotated[int | None, typer.Option(help="Parent process; the server ends when it is gone.")] = None,
) -> None:
    """Serve a model on the CPU, speaking SGLang's HTTP contract, until SIGTERM or Ctrl-C."""
    from megacov.embedded_server.startup import check_model_folder, listen, refuse_open_address
    from megacov.launch.process import die_with_parent
    from megacov.rollout.fleet.keys import ServerKeys, read_keys

    if parent_pid is not None:
        die_with_parent(parent_pid)
    # Mistakes are looked for before torch is imported, so that the user sees them at once.
    check_model_folder(model)
    keys = ServerKeys() if keys_file is None else read_keys(keys_file, setting="--keys-file")
    with listen(host, port) as listener:
        refuse_open_address(listener.getsockname()[0], has_key=keys.api is not None)
        from megacov.embedded_server.limits import Keys
        from megacov.embedded_server.server import ServerSettings, run_server

        settings = ServerSettings(
            dtype=dtype.value,
            max_running_requests=max_running_requests,
            random_seed=random_seed,
            num_threads=num_threads,
            enable_deterministic_inference=deterministic,
            keys=Keys(keys.api, keys.admin),
        )
        run_server(model.resolve(), listener, settings, port_file=port_file)
    # Nothing is left to do, and the interpreter would take seconds to clean up torch.
    sys.stdout.flush()
    os._exit(0)
