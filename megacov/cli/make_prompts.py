"""`megacov make-prompts`: a file of prompts of one of reasoning-gym's tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from megacov.config.yaml_text import parse_yaml
from megacov.errors import ConfigError


def make_prompts(
    task: Annotated[str, typer.Argument(help="Task of reasoning-gym, such as chain_sum.", show_default=False)],
    output: Annotated[Path, typer.Option(help="File to write; one that exists is replaced.", show_default=False)],
    size: Annotated[int, typer.Option(min=1, help="Rows to make.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the rows.")] = 0,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of the task, such as max_terms=3; may be repeated."),
    ] = None,
) -> None:
    """Write prompts of a reasoning-gym task, for the verifier reasoning_gym. Equal options write equal files."""
    from megacov.rewards.reasoning_gym.write import PromptFile, write_prompt_files

    (written,) = write_prompt_files([PromptFile(task, size, seed, output, _parse(settings or []))])
    left_out = (
        f"; left out {written.left_out}, whose right answers the scorer does not take" if written.left_out else ""
    )
    print(f"{output}: {written.written} prompts of {task}{left_out}")


def _parse(settings: list[str]) -> dict[str, object]:
    parsed = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not key or not equals:
            raise ConfigError(f"--set {setting} does not have the form KEY=VALUE.")
        parsed[key] = parse_yaml(value, source=f"--set {setting}")
    return parsed
