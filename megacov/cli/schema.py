"""`megacov schema`: the JSON schema of configuration files, for editors."""

from __future__ import annotations

import json
import sys

from megacov.config import editor_schema


def schema() -> None:
    """Print the JSON schema of configuration files.

    With it an editor completes and checks keys while a configuration is written.
    """
    json.dump(editor_schema(), sys.stdout, indent=2)
    print()
