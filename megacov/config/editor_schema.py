"""A JSON schema for editors, which complete and check keys while a configuration is written."""

from __future__ import annotations

from typing import Any

from megacov.config.schema import RunConfig


def editor_schema() -> dict[str, Any]:
    """The schema of one file.

    Returns:
        JSON schema of the configuration, with `extends`, and with no required key, since a file may hold any part.
    """
    schema = _of_a_part(RunConfig.model_json_schema())
    # Else a loss without a name, which may extend any, would pass for one whose keys nobody knows.
    schema["$defs"]["ImportedLoss"]["required"] = ["name"]
    path = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Files that this one builds on, relative to its folder; later ones win, and this one over all.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _of_a_part(node: Any) -> Any:
    """The schema of a file that may hold any part: no key is required, and without its name a section may fit several.

    "required" is a list only as the keyword; a setting of that name would be a mapping.
    """
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "required" and isinstance(value, list))}
        return {"anyOf" if key == "oneOf" else key: _of_a_part(value) for key, value in kept.items()}
    return [_of_a_part(item) for item in node] if isinstance(node, list) else node
