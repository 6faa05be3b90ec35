"""docs/settings.md, rendered from the schema: `python -m megacov.config.settings_page > docs/settings.md`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from pydantic.fields import FieldInfo

from megacov.config.fields import members, sections_in, sections_in_list
from megacov.config.messages import expected, show
from megacov.config.schema import RunConfig
from megacov.config.section import Section

_INTRODUCTION = """\
# Settings

<!-- Rendered by `python -m megacov.config.settings_page > docs/settings.md`: change the files in megacov/config/. -->

A run is one YAML file with the sections below. `extends: [../models/x.yaml, ...]` takes settings from other files,
relative to the folder of the file that names them; later ones win, and the file itself over all. On the command line,
`section.key=value` changes one setting, as in `megacov train run.yaml optimizer.lr=1e-6`. A setting that is not listed
here is an error, and so is a value of the wrong type. `megacov schema` prints this list as a JSON schema for editors.
[data.md](data.md) describes the file of prompts.
"""


def render_page() -> str:
    """All settings as Markdown, ending in a newline."""
    return "\n".join([_INTRODUCTION, *_sections(RunConfig, prefix="")]).rstrip() + "\n"


def _sections(section: type[Section], *, prefix: str) -> Iterator[str]:
    """Each section that a section holds, with those inside it."""
    for key, field in section.model_fields.items():
        forms = members(field)
        for name, inner in forms.items():
            yield from _section(f"{prefix}{key}", inner, form=name)
        if not forms:
            for inner in sections_in(field) or sections_in_list(field):
                yield from _section(f"{prefix}{key}", inner, form="")


def _section(path: str, section: type[Section], *, form: str) -> Iterator[str]:
    level = "#" * (2 + path.count("."))
    yield from (f"{level} {path}{f' with name: {form}' if form else ''}", "", _text(inspect.getdoc(section)), "")
    rows = [row for key, field in section.model_fields.items() if not sections_in(field) for row in _row(key, field)]
    if rows:
        yield from ("| setting | meaning | values | default |", "|---|---|---|---|", *rows, "")
    yield from _sections(section, prefix=f"{path}.")


def _row(key: str, field: FieldInfo) -> Iterator[str]:
    if key == "name" and field.description is not None and field.default is not None and not field.is_required():
        return  # the name is in the heading
    description = field.description or ""
    meaning = description.rpartition(" [")[0] if description.endswith("]") else description
    yield f"| `{key}` | {_text(meaning)} | {_text(expected(field))} | {_text(_default(field))} |"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    if field.default_factory is not None:
        return "empty" if field.default_factory is dict else "as described"
    default: Any = field.default
    if isinstance(default, tuple):
        return f"`[{', '.join(map(str, default))}]`" if default else "empty"
    return f"`{default}`" if isinstance(default, str) else show(default)


def _text(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|")


if __name__ == "__main__":
    print(render_page(), end="")
