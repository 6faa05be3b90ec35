"""The manifest finds every change of every file, itself included, and nothing else."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, given, settings

from megacov.checkpoint import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    check_file,
    check_files,
    read_manifest,
    record_file,
    write_manifest,
)
from megacov.errors import CheckpointError

SHA256 = "0" * 64


def make_checkpoint(folder: Path, contents: dict[str, bytes]) -> Manifest:
    """Write the files and their manifest."""
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    manifest = Manifest(7, tuple(record_file(folder, name) for name in sorted(contents)))
    write_manifest(folder, manifest)
    return manifest


def problems(folder: Path) -> tuple[str, ...]:
    """Problems that a loader would find."""
    try:
        return check_files(folder, read_manifest(folder).files)
    except CheckpointError as error:
        return (str(error),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A checkpoint that no test changes for good."""
    folder = tmp_path_factory.mktemp("checkpoint")
    make_checkpoint(folder, {"a.bin": bytes(range(256)), "deep/b.json": b'{"step": 7}', "empty": b""})
    return folder


def test_a_record_is_what_the_file_holds(tmp_path):
    content = b"x" * (9 << 20) + b"y"
    (tmp_path / "big").write_bytes(content)
    record = record_file(tmp_path, "big")
    assert record == FileRecord("big", len(content), hashlib.sha256(content).hexdigest())
    assert check_file(tmp_path, record) is None


def test_a_manifest_is_read_as_it_was_written(tmp_path):
    manifest = make_checkpoint(tmp_path, {"a": b"1", "deep/deeper/b": b"", "with space \u00e9": b"2"})
    assert read_manifest(tmp_path) == manifest
    assert problems(tmp_path) == ()


def test_a_manifest_is_plain_json(folder):
    value = json.loads((folder / MANIFEST_NAME).read_text())
    assert value["step"] == 7
    assert [entry["name"] for entry in value["files"]] == ["a.bin", "deep/b.json", "empty"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_changed_byte_is_found(folder, data):
    name = data.draw(st.sampled_from(["a.bin", "deep/b.json", MANIFEST_NAME]))
    content = (folder / name).read_bytes()
    place = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    # Includes every flipped bit, and other white space in the manifest.
    changed[place] ^= data.draw(st.one_of(st.integers(0, 7).map(lambda bit: 1 << bit), st.integers(1, 255)))
    (folder / name).write_bytes(changed)
    try:
        (problem,) = problems(folder)
    finally:
        (folder / name).write_bytes(content)
    assert name in problem
    assert problems(folder) == ()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_every_cut_is_found(folder, data):
    name = data.draw(st.sampled_from(["a.bin", "deep/b.json", MANIFEST_NAME]))
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        (problem,) = problems(folder)
    finally:
        (folder / name).write_bytes(content)
    assert name in problem


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "a.bin is missing"),
        (b"", "a.bin has 0 bytes instead of 4 (truncated)"),
        (b"abc", "a.bin has 3 bytes instead of 4 (truncated)"),
        (b"abcde", "a.bin has 5 bytes instead of 4 (bytes were added to it)"),
        (b"abcD", "a.bin has another sha256 (its bytes changed after it was written)"),
        (b"abcd", None),
    ],
)
def test_the_reason_is_named(tmp_path, content, reason):
    (tmp_path / "a.bin").write_bytes(b"abcd")
    record = record_file(tmp_path, "a.bin")
    (tmp_path / "a.bin").unlink()
    if content is not None:
        (tmp_path / "a.bin").write_bytes(content)
    assert check_file(tmp_path, record) == reason


def test_a_folder_in_place_of_a_file_cannot_be_read(tmp_path):
    (tmp_path / "a.bin").mkdir()
    record = FileRecord("a.bin", (tmp_path / "a.bin").stat().st_size, SHA256)
    assert check_file(tmp_path, record) == "a.bin cannot be read: Is a directory"
    with pytest.raises(CheckpointError, match=r"a.bin cannot be read: Is a directory\."):
        record_file(tmp_path, "a.bin")


def test_a_file_below_a_file_cannot_be_read(tmp_path):
    (tmp_path / "a").touch()
    assert check_file(tmp_path, FileRecord("a/b", 0, SHA256)) == "a/b cannot be read: Not a directory"


def test_a_missing_manifest_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"MANIFEST.json is missing: the checkpoint was never finished\."):
        read_manifest(tmp_path)


@pytest.mark.parametrize("text", [b"", b"\n", b"\0" * 512])
def test_an_empty_manifest_is_named(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match="MANIFEST.json is empty"):
        read_manifest(tmp_path)


def entry(**changes: object) -> dict[str, object]:
    """An entry of the list of files."""
    return {"name": "a", "num_bytes": 1, "sha256": SHA256, **changes}


def whole(*files: object, **changes: object) -> dict[str, object]:
    """A manifest with a wrong checksum."""
    return {"format": 1, "step": 7, "files": list(files), "sha256": SHA256, **changes}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ([], "does not list the files of a step"),
        ("text", "does not list the files of a step"),
        (None, "does not list the files of a step"),
        ({}, "does not list the files of a step"),
        (whole(step="7"), "does not list the files of a step"),
        (whole(files={}), "does not list the files of a step"),
        (whole(format=2), "has format 2, and this version of megacov reads format 1"),
        (whole(step=-1), "step is -1"),
        (whole(step=True), "step is True"),
        (whole("a"), "not name, num_bytes and sha256"),
        (whole(entry(name=3)), "not name, num_bytes and sha256"),
        (whole(entry(num_bytes=-1)), "size of a is -1"),
        (whole(entry(sha256="abc")), "sha256 of a is 'abc'"),
        (whole(entry(), entry()), "names a file twice"),
        (whole(entry()), "does not have the checksum it names"),
        *((whole(entry(name=name)), "does not stay inside") for name in ("/etc/passwd", "../a", "a/../../b", "..")),
        *((whole(entry(name=name)), "does not stay inside") for name in ("", ".", "a//b", "./a", "a/", "a\0b")),
        *((whole(entry(name=name)), "does not stay inside") for name in (MANIFEST_NAME, "a\nb")),
        (whole(entry(name="\ud800")), "half of a surrogate pair"),
    ],
)
def test_a_malformed_manifest_is_one_sentence(tmp_path, value, reason):
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(value))
    with pytest.raises(CheckpointError) as raised:
        read_manifest(tmp_path)
    assert reason in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", [b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 10_000, b'{"format": NaN}'])
def test_what_is_no_json_is_one_sentence(tmp_path, text):
    (tmp_path / MANIFEST_NAME).write_bytes(text)
    with pytest.raises(CheckpointError, match="is truncated or malformed"):
        read_manifest(tmp_path)


@given(content=st.binary(max_size=200))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_there_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / MANIFEST_NAME).write_bytes(content)
    with pytest.raises(CheckpointError):
        read_manifest(tmp_path)


@pytest.mark.parametrize("name", ["../a", "/a", "a\nb"])
def test_a_name_that_could_not_be_read_is_not_written(tmp_path, name):
    with pytest.raises(CheckpointError, match="does not stay inside"):
        write_manifest(tmp_path, Manifest(7, (FileRecord(name, 0, SHA256),)))
    assert list(tmp_path.iterdir()) == []
