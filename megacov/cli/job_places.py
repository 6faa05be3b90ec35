"""Everything that the container of a job must see, from the configuration and the environment."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from megacov.cli.server_layout import job_layout, server_arguments
from megacov.config import RunConfig
from megacov.config.load import config_files
from megacov.data.files import local_path
from megacov.launch.loader import LOADER_FOLDER
from megacov.launch.mounts import Place, find_mounts, place_of_file, place_of_folder
from megacov.launch.site import Site


def container_mounts(run: RunConfig, config: Path, site: Site) -> str:
    """The mounts of a job's container, derived or checked; raises ConfigError as `find_mounts` does."""
    # Apptainer mounts these by itself.
    always = (Path.home(), Path.cwd(), Path(tempfile.gettempdir())) if site.container == "apptainer" else ()
    return find_mounts(list(_places(run, config, site)), site.mounts, always=always)


def _places_of_prompts(run: RunConfig) -> Iterator[Place]:
    for source in run.sources:
        for path in filter(None, map(local_path, source.path)):
            name = "data.path" if run.data.path is not None else f"data.sources {source.name}"
            if any(sign in str(path) for sign in "*?["):
                wild = next(each for each in reversed((path, *path.parents)) if any(s in each.name for s in "*?["))
                yield from place_of_folder(name, wild.parent)
            else:
                yield from place_of_folder(name, path) if path.is_dir() else place_of_file(name, path)


def _places(run: RunConfig, config: Path, site: Site) -> Iterator[Place]:
    yield Place("the current folder", Path.cwd())
    for file in config_files(config):
        yield from place_of_file("the configuration", file)
    # The folder above it, in which an earlier run is moved aside.
    yield from place_of_file("run.directory", run.run.directory, is_written=True)
    yield from place_of_folder("model.path", run.model.path)
    yield from _places_of_prompts(run)
    if run.weight_sync.directory is not None:
        yield Place("weight_sync.directory", Path(os.path.abspath(run.weight_sync.directory)), is_written=True)
    # A job that starts servers lists them, and their keys, in the run's folder.
    if not job_layout(run).servers:
        for name in ("addresses_file", "keys_file"):
            path = getattr(run.rollout, name)
            yield from place_of_file(f"rollout.{name}", path) if path is not None else ()
    if run.weight_sync.traits.loader is not None:
        yield from place_of_folder("PYTHONPATH of the servers", LOADER_FOLDER)
    for name, value in server_arguments(run).items():
        if isinstance(value, str) and value.startswith("/"):
            yield from place_of_folder(f"rollout.server_arguments.{name}", Path(value))
    for text in (os.environ.get("PYTHONPATH", ""), site.environment.get("PYTHONPATH", "")):
        for entry in text.split(os.pathsep):
            if entry and Path(entry).is_dir():
                yield from place_of_folder("PYTHONPATH", Path(entry))
