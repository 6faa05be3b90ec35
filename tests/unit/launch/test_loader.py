"""A server is started with the loader beside whatever the user has given it."""

from __future__ import annotations

import os
import subprocess
import sys

from megacov.config.transports import TRANSPORTS
from megacov.launch.loader import LOADER_FOLDER, with_loader

LOADER = TRANSPORTS["reshard"].loader


def test_without_a_loader_nothing_is_added():
    assert with_loader({"tp-size": 2}, {"A": "b"}, None) == ({"tp-size": 2}, {"A": "b"})


def test_what_the_user_has_given_stays(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "inherited")
    arguments, environment = with_loader({"tp-size": 2}, {"A": "b"}, LOADER)
    assert arguments == {"tp-size": 2, "custom-weight-loader": [LOADER]}
    assert environment == {"A": "b", "PYTHONPATH": f"{LOADER_FOLDER}{os.pathsep}inherited"}
    arguments, environment = with_loader({"custom_weight_loader": ("a.b", LOADER)}, {"PYTHONPATH": "own"}, LOADER)
    assert arguments == {"custom-weight-loader": ["a.b", LOADER]}
    assert environment["PYTHONPATH"] == f"{LOADER_FOLDER}{os.pathsep}own"
    assert with_loader({"custom-weight-loader": "a.b"}, {}, LOADER)[0] == {"custom-weight-loader": ["a.b", LOADER]}


def test_the_folder_alone_is_enough_to_import_the_loader(tmp_path):
    """As a server does, which has torch and nothing of ours."""
    module, _, function = str(LOADER).partition(".")
    code = f"import sys, {module}; assert callable({module}.{function}) and 'megacov' not in sys.modules"
    environment = {**os.environ, "PYTHONPATH": str(LOADER_FOLDER)}
    assert {path.stem for path in LOADER_FOLDER.glob("*.py")} == {"__init__", module}
    subprocess.run([sys.executable, "-c", code], env=environment, cwd=tmp_path, check=True, timeout=120)
