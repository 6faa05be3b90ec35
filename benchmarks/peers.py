"""Functions of other projects, to be timed beside ours. Their code is downloaded at run time and never stored here.

A file of a peer comes from the first of these places: MEGACOV_PEERS/<peer>/<file>, where the variable names a folder
with a checkout of each peer; the cache, ~/.cache/megacov/peers; the network. Whatever its place, it must have the
SHA-256 that is written below, since it is run. Only the definitions that are asked for are run, with the names that
the caller gives, so that no peer has to be installed. With MEGACOV_PEERS=none there are no peers.
"""

from __future__ import annotations

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VARIABLE = "MEGACOV_PEERS"
_TIMEOUT_S = 20.0


class PeerMissingError(Exception):
    """A file of a peer is nowhere; the message says where it was looked for."""


@dataclass(frozen=True)
class Peer:
    """A public project at one revision.

    name: folder of its checkout.
    clone: lines that make that folder.
    source: a wheel of PyPI, as pip names it, or the URL of a revision, to which the path of a file is added.
    sha256: of each file that is used, by its path in the project.
    """

    name: str
    clone: str
    source: str
    sha256: dict[str, str]

    @property
    def is_wheel(self) -> bool:
        """Whether the source is a wheel."""
        return "==" in self.source


def _on_github(name: str, repository: str, revision: str, sha256: dict[str, str]) -> Peer:
    clone = f"git clone https://github.com/{repository} {name} && git -C {name} checkout {revision}"
    return Peer(name, clone, f"https://raw.githubusercontent.com/{repository}/{revision}", sha256)


VERL = Peer(
    "verl",
    "git clone --branch v0.9.1 https://github.com/volcengine/verl verl",
    "verl==0.9.1",
    {
        "verl/utils/megatron/tensor_parallel.py": "d7c5cb1632b774bde6c783eaf33c56bba4c01422eb41ef6d80593b75643cb41a",
        "verl/trainer/ppo/core_algos.py": "a54b6d812db4441e8b0989ae69d2c46b0a0a7b584296f73d8316f264462c37cb",
        "verl/utils/torch_functional.py": "9855e101c19b64c90d1f07bf47ce3e628751afe979b40d2b863ae6d16aa4cee1",
    },
)
SLIME = _on_github(
    "slime",
    "THUDM/slime",
    "624b824a898ab0ec1fcb4d373004c7f3852bf515",
    {"slime/utils/ppo_utils.py": "0f0ad5ee55ceb27ac7160a8665e324a2a5f57ff32ce1593f587d94ad587179cb"},
)
NEMO_RL = _on_github(
    "nemo-rl",
    "NVIDIA-NeMo/RL",
    "7ea279abfbeb698b092856d0dab61e7cf39bc909",
    {"nemo_rl/distributed/model_utils.py": "0d8651cb355e8a40397a22983e89057bb9139bad352ab569650071cafe52e832"},
)


def load(peer: Peer, file: str, names: Collection[str], **given: Any) -> dict[str, Any]:
    """Run some top-level definitions of a file.

    Args:
        peer: project that has the file.
        file: path in the project.
        names: functions and classes to define; their decorators are left out, except torch's.
        **given: what the definitions refer to.

    Returns:
        The definitions by name, beside what was given.

    Raises:
        PeerMissingError: there is no such file.
    """
    tree = ast.parse(_source(peer, file))
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in names]
    assert len(found) == len(names), f"{file} lacks some of {names}"
    for node in found:
        node.decorator_list = [each for each in node.decorator_list if ast.unparse(each).startswith("torch.")]
    tree.body = list(found)
    space: dict[str, Any] = dict(given)
    # Annotations stay text: they name what only the whole file imports.
    code = compile(tree, f"{peer.name}/{file}", "exec", flags=annotations.compiler_flag)
    exec(code, space)  # noqa: S102 - a file with a known hash
    return space


def _source(peer: Peer, file: str) -> str:
    own = os.environ.get(VARIABLE)
    if own == "none":
        raise PeerMissingError(f"{peer.name}: {VARIABLE} is none")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "megacov", "peers", peer.name)
    places = [Path(own, peer.name, file)] if own else []
    for place in [*places, cache / file]:
        if place.is_file():
            return _checked(place.read_bytes(), peer, file, where=str(place))
    try:
        content = _from_wheel(peer, file) if peer.is_wheel else _from_url(f"{peer.source}/{file}")
    except (OSError, urllib.error.URLError, subprocess.SubprocessError, KeyError) as error:
        raise PeerMissingError(
            f"{peer.name}: {peer.source} could not be downloaded ({type(error).__name__}); in a folder that {VARIABLE} "
            f"names: {peer.clone}"
        ) from error
    text = _checked(content, peer, file, where=peer.source)
    (cache / file).parent.mkdir(parents=True, exist_ok=True)
    (cache / file).write_bytes(content)
    return text


def _checked(content: bytes, peer: Peer, file: str, *, where: str) -> str:
    if hashlib.sha256(content).hexdigest() != peer.sha256[file]:
        raise PeerMissingError(
            f"{peer.name}: {where} has another {file} than the pinned one; make it anew: {peer.clone}"
        )
    return content.decode()


def _from_url(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as reply:
        content: bytes = reply.read()
    return content


def _from_wheel(peer: Peer, file: str) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, peer.source]
        subprocess.run(command, check=True, capture_output=True, timeout=10 * _TIMEOUT_S)
        with zipfile.ZipFile(next(Path(folder).glob("*.whl"), Path(folder, "no wheel"))) as wheel:
            return wheel.read(file)
