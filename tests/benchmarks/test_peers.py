"""Other projects' functions: only the pinned file runs, only what is asked for of it, and a missing one is one line."""

import hashlib
from pathlib import Path

import pytest

from benchmarks.peers import Peer, PeerMissingError, load

SOURCE = """
import nothing_of_that_name

@nothing_of_that_name.registers("double")
def double(x: nothing_of_that_name.Type) -> nothing_of_that_name.Type:
    return half(x) * four

def half(x):
    return x / 2

raise SystemExit("the rest of the file ran")
"""
FILE = "package/file.py"


def peer_of(source: str) -> Peer:
    sha256 = hashlib.sha256(source.encode()).hexdigest()
    return Peer("theirs", "git clone of theirs", "http://127.0.0.1:9", {FILE: sha256})


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "peers" / "theirs" / FILE
    file.parent.mkdir(parents=True)
    file.write_text(SOURCE)
    monkeypatch.setenv("MEGACOV_PEERS", str(tmp_path / "peers"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return file


def test_definitions_run_without_the_rest_of_their_file(checkout: Path) -> None:
    assert load(peer_of(SOURCE), FILE, ("double", "half"), four=4)["double"](3) == 6


def test_a_file_that_is_not_the_pinned_one_does_not_run(checkout: Path) -> None:
    checkout.write_text(SOURCE + "# changed\n")
    with pytest.raises(PeerMissingError, match=f"theirs: {checkout} has another {FILE} than the pinned one"):
        load(peer_of(SOURCE), FILE, ("half",))


def test_without_checkout_cache_and_network_one_sentence_says_what_to_do(checkout: Path) -> None:
    checkout.unlink()
    with pytest.raises(PeerMissingError, match=r"could not be downloaded \(.*\); in a folder .*: git clone of theirs"):
        load(peer_of(SOURCE), FILE, ("half",))


def test_a_downloaded_file_is_kept_in_the_cache(checkout: Path, tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "megacov" / "peers" / "theirs" / FILE
    cached.parent.mkdir(parents=True)
    checkout.rename(cached)
    assert load(peer_of(SOURCE), FILE, ("half",))["half"](4) == 2
