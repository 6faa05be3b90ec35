"""The floors of the house: a file imports from its own folder and from lower floors only, as read off its source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

FLOORS = {
    "errors": 0,
    "json_text": 0,
    "types": 0,
    "files": 0,
    "functions": 1,
    "config": 1,
    "plan": 2,
    "launch": 2,
    "checkpoint": 2,
    "parallel": 2,
    "ops": 3,
    "selection": 4,
    "losses": 4,
    "advantages": 4,
    "data": 5,
    "rewards": 5,
    "rollout": 5,
    "embedded_server": 5,
    "weight_receiver": 5,
    "monitor": 5,
    "weight_sync": 6,
    "evaluation": 6,
    "megatron": 6,
    "sweep": 6,
    "trainer": 7,
    "cli": 8,
    # The package itself, which importing any part of it runs first, and the entry point.
    "__init__": 0,
    "__main__": 9,
}

# Inner floors: rooms of a folder, lowest first. A room imports from itself and from the rooms before it.
ROOMS = {"rollout": ("tasks", "client", "fleet", "sampling")}
# Rooms of a folder that never import each other.
SEPARATE_ROOMS = {"trainer": ("optimizer_step", "rollout", "saving")}

# Imports that a folder must not have, by the start of the dotted name.
NO_TORCH = ("config", "plan", "launch", "checkpoint", "sweep")
FORBIDDEN = {
    **dict.fromkeys(NO_TORCH, ("torch",)),
    # Pure: they neither communicate nor know who could.
    "losses": ("torch.distributed", "megacov.parallel"),
    "advantages": ("torch.distributed", "megacov.parallel"),
    # A server imports it, and has nothing else of ours.
    "weight_receiver": ("megacov",),
}


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Dotted names of everything imported, wherever the import stands, and of attributes of torch."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import hides its floor"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "torch":
            yield f"torch.{node.attr}"


def is_under(name: str, start: str) -> bool:
    return name == start or name.startswith(f"{start}.")


def violations(package: Path) -> list[str]:
    """Every import that breaks a rule, as "file: what"."""
    found = []
    for path in sorted(package.rglob("*.py")):
        own, room = [part.removesuffix(".py") for part in (*path.relative_to(package).parts, "")][:2]
        where = str(path.relative_to(package.parent))
        if own not in FLOORS:
            found.append(f"{where}: {own} has no floor")
            continue
        for name in sorted(set(imported_names(ast.parse(path.read_text())))):
            found += [f"{where}: {problem}" for problem in (*problems(name, own), *room_problems(name, own, room))]
    return found


def problems(name: str, own: str) -> Iterator[str]:
    """Problems with room `own` importing `name`."""
    if is_under(name, "sglang"):
        yield "imports sglang, which is only ever a server"
    if is_under(name, "megatron") and own != "megatron":
        yield f"imports {name}; only megacov/megatron may"
    for start in FORBIDDEN.get(own, ()):
        if is_under(name, start):
            yield f"imports {name}; {own} may not use {start}"
    if name.startswith("megacov."):
        other = name.split(".")[1]
        # `from megacov import __version__` is the package itself.
        other = other if not other.startswith("__") else "__init__"
        if other != own and not FLOORS.get(other, 99) < FLOORS[own]:
            yield f"imports {name}, which is not on a lower floor"


def room_problems(name: str, own: str, room: str) -> Iterator[str]:
    """Problems with `room` of folder `own` importing `name`."""
    parts = name.split(".")
    if parts[:2] != ["megacov", own] or len(parts) < 3:
        return
    ordered, separate, other = ROOMS.get(own, ()), SEPARATE_ROOMS.get(own, ()), parts[2]
    if room in ordered and other not in ordered[: ordered.index(room) + 1]:
        yield f"imports {name}, which is not in {room} or a lower room of {own}"
    if room in separate and other in separate and other != room:
        yield f"imports {name}; rooms of {own} never import each other"


def test_imports_go_down():
    assert violations(ROOT / "megacov") == []


@pytest.mark.parametrize(
    ("file", "source", "complaint"),
    [
        ("ops/x.py", "from megacov.losses import get_loss", "megacov.losses.get_loss, which is not on a lower floor"),
        ("ops/x.py", "def f():\n    import megacov.trainer.loop", "megacov.trainer.loop, which is not on"),
        ("ops/x.py", "from megacov import trainer", "megacov.trainer, which is not on a lower floor"),
        ("data/x.py", "from megacov.rewards import registry", "megacov.rewards.registry, which is not on"),
        ("losses/x.py", "from megacov.selection import top_k", "megacov.selection.top_k, which is not on"),
        ("types.py", "from megacov.errors import ConfigError", "megacov.errors.ConfigError, which is not on"),
        ("__init__.py", "from megacov.ops import covariance", "megacov.ops.covariance, which is not on"),
        ("trainer/x.py", "from megatron.core import parallel_state", "only megacov/megatron may"),
        ("rollout/x.py", "import sglang.srt", "which is only ever a server"),
        ("losses/x.py", "import torch.distributed as dist", "losses may not use torch.distributed"),
        ("losses/x.py", "from torch import distributed", "losses may not use torch.distributed"),
        ("advantages/x.py", "import torch\ntorch.distributed.barrier()", "may not use torch.distributed"),
        ("losses/x.py", "from megacov.parallel import all_gather", "losses may not use megacov.parallel"),
        ("config/x.py", "from torch import Tensor", "config may not use torch"),
        ("launch/deep/x.py", "import torch", "launch may not use torch"),
        ("attic/x.py", "", "attic has no floor"),
        ("embedded_server/x.py", "from megacov.rollout import RolloutClient", "RolloutClient, which is not on a lower"),
        ("rollout/client/x.py", "from megacov.rollout.fleet.fleet import Fleet", "not in client or a lower room"),
        ("rollout/fleet/x.py", "import megacov.rollout.sampling.groups", "not in fleet or a lower room of rollout"),
        ("rollout/sampling/x.py", "from megacov.rollout import Fleet", "not in sampling or a lower room of rollout"),
        ("rollout/tasks.py", "from megacov.rollout.client import wire", "not in tasks or a lower room of rollout"),
        ("trainer/saving/x.py", "from megacov.trainer.rollout import servers", "rooms of trainer never import each"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path, file, source, complaint):
    path = tmp_path / "megacov" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    (found,) = violations(tmp_path / "megacov")
    assert complaint in found
    assert found.startswith(f"megacov/{file}: ")


@pytest.mark.parametrize(
    ("file", "source"),
    [
        (
            "ops/x.py",
            "import torch.distributed\nfrom megacov.parallel import all_gather\nfrom megacov.ops import masked",
        ),
        ("monitor/x.py", "from megacov.selection import top_k\nfrom megacov.types import Sample"),
        ("megatron/x.py", "from megatron.core import parallel_state\nimport megatronic"),
        ("cli/x.py", "from megacov import __version__\nfrom megacov.trainer import loop"),
        ("config/x.py", "import torchlike"),
        ("rollout/fleet/x.py", "from megacov.rollout.client import wire\nfrom megacov.rollout.fleet import member"),
        (
            "rollout/sampling/x.py",
            "from megacov.rollout.tasks import gather_all\nfrom megacov.rollout.fleet import fleet",
        ),
        (
            "trainer/saving/x.py",
            "from megacov.trainer.state import TrainState\nfrom megacov.trainer.saving import export",
        ),
        ("trainer/loop.py", "from megacov.trainer.saving import export\nfrom megacov.trainer.rollout import worker"),
    ],
)
def test_what_is_allowed_passes(tmp_path, file, source):
    path = tmp_path / "megacov" / file
    path.parent.mkdir(parents=True)
    path.write_text(source)
    assert violations(tmp_path / "megacov") == []


def test_every_folder_has_files():
    # An empty walk would pass everything.
    assert {path.parent.name for path in (ROOT / "megacov").rglob("*.py")} >= {"config", "ops", "losses", "megatron"}
    for folder, rooms in (ROOMS | SEPARATE_ROOMS).items():
        assert {path.stem for path in (ROOT / "megacov" / folder).iterdir()} >= set(rooms)


@pytest.mark.parametrize("folder", NO_TORCH)
def test_login_nodes_need_no_torch(folder):
    modules = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts) for path in (ROOT / "megacov" / folder).rglob("*.py")
    ]
    if not modules:
        pytest.skip(f"megacov/{folder} is not written yet")
    code = (
        f"import importlib, sys\nfor name in {modules!r}: importlib.import_module(name)\nprint('torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout.strip() == "False"


def test_only_the_collectives_reduce_by_a_maximum_or_minimum():
    """Backends lose NaN in MAX and MIN; `all_reduce_max` does not."""
    users = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "megacov").rglob("*.py")
        if {"MAX", "MIN"}
        & {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
    }
    assert users == {"megacov/parallel/collectives.py"}
