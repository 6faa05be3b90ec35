"""A JSON schema for editors, which complete and check keys while a configuration is written."""

from __future__ import annotations

from typing import Any

from megacov.config.schema import RunConfig


def editor_schema() -> dict[str, Any]:
    """JSON schema of one file: it allows `extends` and requires no key, since a file may hold any part of a run."""
    schema = _without_required(RunConfig.model_json_schema())
    # Otherwise a loss without a name, which may extend any loss, would match the one whose keys are unknown.
    schema["$defs"]["ImportedLoss"]["required"] = ["name"]
    path = {"type": "string"}
    schema["properties"]["extends"] = {
        "anyOf": [path, {"type": "array", "items": path}],
        "description": "Files that this one extends, relative to its folder; later ones win, and this one over all.",
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _without_required(node: Any) -> Any:
    """Require no key, and let a section without its name match several of its forms.

    "required" is a list only as the keyword; a setting of that name would be a mapping.
    """
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if not (key == "required" and isinstance(value, list))}
        return {"anyOf" if key == "oneOf" else key: _without_required(value) for key, value in kept.items()}
    return [_without_required(item) for item in node] if isinstance(node, list) else node
