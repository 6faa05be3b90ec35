"""`python -m megacov.cli.deep_check PARENT PART...`: look at a run's plug-ins and files; `megacov.cli.deep` starts it.

The configuration comes as JSON on stdin. Reports go to stdout, one JSON object a line. The output of
plug-ins goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

from megacov.config import RunConfig
from megacov.errors import MegacovError
from megacov.launch.output import keep_output
from megacov.launch.process import die_with_parent
from megacov.plan import read_model_sizes
from megacov.rewards.loading import load_verifier
from megacov.rewards.settings import VerifierSettings, verifiers_of

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
        (None if the look itself was impossible), and whether a module is missing; `ends` at last.
    """
    for part in parts:
        for looks_at, action in _PARTS[part](config):
            yield {"looks_at": looks_at, "part": part}
            try:
                action()
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
    model, data = config.model.path, config.data.path
    if (model / "config.json").is_file():
        yield f"the tokenizer in model.path {model}, with data.path {data}", lambda: _check_prompts(config)
    elif data.is_file():
        yield f"data.path {data}", lambda: _check_prompt_lines(config)
    if config.rollout.keys_file is not None and config.rollout.keys_file.exists():
        yield f"rollout.keys_file {config.rollout.keys_file}", lambda: _check_keys(config)


def _check_prompts(config: RunConfig) -> None:
    from megacov.data import load_prompts, load_tokenizer
    from megacov.data.encoding import apply_chat_template

    vocab_size, data = read_model_sizes(config.model.path / "config.json").vocab_size, config.data
    tokenizer = load_tokenizer(config.model.path, vocab_size=vocab_size)
    if not data.path.is_file():
        if data.chat_template:
            apply_chat_template(["1 + 1 ="], tokenizer, data.chat_template_kwargs)
        return
    load_prompts(
        data.path,
        tokenizer,
        vocab_size=vocab_size,
        prompt_field=data.prompt_field,
        answer_field=data.answer_field,
        chat_template=data.chat_template,
        chat_template_kwargs=data.chat_template_kwargs,
        max_prompt_length=data.max_prompt_length,
    )


def _check_prompt_lines(config: RunConfig) -> None:
    from megacov.data.prompts import check_prompt_file

    data = config.data
    check_prompt_file(data.path, prompt_field=data.prompt_field, answer_field=data.answer_field)


def _check_keys(config: RunConfig) -> None:
    from megacov.rollout import read_keys

    assert config.rollout.keys_file is not None
    read_keys(config.rollout.keys_file)


_PARTS: Mapping[str, Callable[[RunConfig], Iterator[Look]]] = {"verifier": _verifiers, "loss": _loss, "files": _files}


if __name__ == "__main__":
    main(sys.argv[1:])
