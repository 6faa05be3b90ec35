"""`python -m megacov.cli.deep_check PARENT PART...`: look at a run's plug-ins and files; `megacov.cli.deep` starts it.

The configuration comes as JSON on stdin. Reports go to stdout, one JSON object a line. The output of
plug-ins goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial

from megacov.config import RunConfig
from megacov.data.files import is_pattern, local_path
from megacov.data.prompts import check_prompt_files
from megacov.errors import ConfigError, MegacovError
from megacov.launch.output import keep_output
from megacov.launch.process import die_with_parent
from megacov.plan import read_model_sizes
from megacov.rewards.answers import check_answers
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings, verifiers_of
from megacov.trainer.prompts import columns_of, load_sources, paths_of

WARNING = "warning"
"""In place of the name of an error: the run is possible."""

Look = tuple[str, Callable[[], object]]


def main(arguments: Sequence[str]) -> None:
    """Look at each part, and report."""
    keep_output()
    parent, *parts = arguments
    die_with_parent(int(parent))
    config = RunConfig.model_validate_json(sys.stdin.buffer.read())
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as reports:
        os.dup2(2, 1)
        for report in look(config, parts):
            print(json.dumps(report), file=reports, flush=True)
        # Threads that a plug-in has started, and what it does at exit, are of no interest.
        os._exit(0)


def look(config: RunConfig, parts: Sequence[str]) -> Iterator[dict[str, object]]:
    """Look at parts of a run.

    Args:
        config: configuration that has passed the static checks.
        parts: any of "verifier", "loss" and "files".

    Yields:
        `looks_at` and its part before each look; then, if something was found, its sentence, the name of the error
        (None if the look itself was impossible, WARNING if the run is possible), and whether a module is missing;
        `ends` at last.
    """
    for part in parts:
        for looks_at, action in _PARTS[part](config):
            yield {"looks_at": looks_at, "part": part}
            try:
                warning = action()
                if isinstance(warning, str):
                    yield {"sentence": warning, "kind": WARNING, "is_missing": False}
            except MegacovError as error:
                is_missing = isinstance(error.__cause__, ImportError)
                yield {"sentence": str(error), "kind": _public_name(error), "is_missing": is_missing}
            except (ImportError, OSError) as error:
                why = f"{error.name} is not installed here" if isinstance(error, ModuleNotFoundError) else str(error)
                yield {"sentence": f"{looks_at} is not checked, since {why}.", "kind": None, "is_missing": True}
    yield {"ends": True}


def _public_name(error: MegacovError) -> str:
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ == "megacov.errors")


def _verifiers(config: RunConfig) -> Iterator[Look]:
    for settings in verifiers_of(config).settings:
        yield f"{settings.setting} {settings.name}", partial(_prepare, settings)


def _prepare(settings: VerifierSettings) -> None:
    load_verifier(settings).prepared()


def _loss(config: RunConfig) -> Iterator[Look]:
    yield f"algorithm.loss.name {config.algorithm.loss.name}", lambda: _check_loss(config)


def _check_loss(config: RunConfig) -> None:
    from megacov.trainer.algorithm import resolve_loss

    resolve_loss(config)


def _files(config: RunConfig) -> Iterator[Look]:
    model = config.model.path
    # Each setting once, with its paths.
    settings = dict.fromkeys(setting for setting, _ in paths_of(config))
    data = ", ".join(" ".join([each, *(path for name, path in paths_of(config) if name == each)]) for each in settings)
    if (model / "config.json").is_file():
        yield f"the tokenizer in model.path {model}, with {data}", lambda: _check_prompts(config)
    elif prompts_can_be_read(config):
        yield data, lambda: _check_prompt_lines(config)
    if config.rollout.keys_file is not None and config.rollout.keys_file.exists():
        yield f"rollout.keys_file {config.rollout.keys_file}", lambda: _check_keys(config)


def prompts_can_be_read(config: RunConfig) -> bool:
    """Whether all local files of prompts are on this machine; addresses are tried."""
    # os.path: what cannot be read is not there, and the static checks have named it.
    return all(local_path(path) is None or os.path.exists(path) or is_pattern(path) for _, path in paths_of(config))


def _check_prompts(config: RunConfig) -> str | None:
    """Returns a warning if prompts are left out."""
    from megacov.data import load_tokenizer
    from megacov.data.encoding import apply_chat_template

    vocab_size, data = read_model_sizes(config.model.path / "config.json").vocab_size, config.data
    tokenizer = load_tokenizer(config.model.path, vocab_size=vocab_size)
    if not prompts_can_be_read(config):
        if data.chat_template:
            apply_chat_template([[{"role": "user", "content": "1 + 1 ="}]], tokenizer, data.chat_template_kwargs)
        return None
    prompts = load_sources(config, tokenizer, vocab_size=vocab_size)
    with suppress(ConfigError):  # of a verifier that cannot be imported, which the look at it has found
        check_answers(config, prompts, prompts.place_of)
    return " ".join(table.remark for table in prompts.tables if table.remark) or None


def _check_prompt_lines(config: RunConfig) -> str:
    """Returns a warning: without a tokenizer there are no prompts yet."""
    for source in config.sources:
        check_prompt_files(source.path, columns_of(source))
    return (
        f"model.path {config.model.path} is not on this machine, so the rows of the prompts were read, but neither "
        "their lengths in tokens nor their answers were checked."
    )


def _check_keys(config: RunConfig) -> None:
    from megacov.rollout import read_keys

    assert config.rollout.keys_file is not None
    read_keys(config.rollout.keys_file)


_PARTS: Mapping[str, Callable[[RunConfig], Iterator[Look]]] = {"verifier": _verifiers, "loss": _loss, "files": _files}


if __name__ == "__main__":
    main(sys.argv[1:])
