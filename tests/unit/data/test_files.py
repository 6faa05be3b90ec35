"""Paths and addresses become files in a fixed order, and what cannot be reached is one sentence."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import fsspec
import pytest

from megacov.data.files import DataFile, digest_of, find_files, is_pattern, local_path
from megacov.data.rows import read_rows
from megacov.errors import DataError
from tests.support.local_datasets import DATASET_ID, local_datasets

LINE = b'{"prompt": "1=", "answer": "1"}\n'


def written(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(LINE)
    return folder


def names_of(paths: str | list[str]) -> list[str]:
    return [file.name for file in find_files(paths)]


def test_a_folder_gives_its_files_by_name_and_nothing_else(tmp_path: Path) -> None:
    written(tmp_path, "b.jsonl", "a.parquet", "c.json", "notes.txt", "deep/d.jsonl")
    assert names_of(str(tmp_path)) == [str(tmp_path / name) for name in ("a.parquet", "b.jsonl", "c.json")]
    assert find_files(tmp_path / "notes.txt") == [DataFile(str(tmp_path / "notes.txt"))]
    several = [str(tmp_path / "deep"), str(tmp_path / "b.jsonl")]
    assert names_of(several) == [str(tmp_path / "deep" / "d.jsonl"), str(tmp_path / "b.jsonl")]


def test_a_pattern_gives_what_it_matches_unless_a_file_has_its_name(tmp_path: Path) -> None:
    written(tmp_path, "train-1.jsonl", "train-0.jsonl", "test-0.jsonl", "a[1].jsonl")
    assert names_of(str(tmp_path / "train-*")) == [str(tmp_path / f"train-{k}.jsonl") for k in (0, 1)]
    assert names_of(str(tmp_path / "a[1].jsonl")) == [str(tmp_path / "a[1].jsonl")]
    with pytest.raises(DataError, match="No file matches .*dev-"):
        find_files(str(tmp_path / "dev-*"))


def test_two_stars_match_folders_of_any_depth_and_a_pattern_gives_no_folders(tmp_path: Path) -> None:
    written(tmp_path, "train-0.jsonl", "a/train-1.jsonl", "a/b/train-2.jsonl", "train-d/notes.txt")
    every = ["a/b/train-2.jsonl", "a/train-1.jsonl", "train-0.jsonl"]
    assert names_of(str(tmp_path / "**" / "train-*")) == [str(tmp_path / name) for name in every]
    assert names_of(str(tmp_path / "train-*")) == [str(tmp_path / "train-0.jsonl")]


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("a/b-?.jsonl", True),
        ("bucket/**/a.jsonl", True),
        ("https://host/a.jsonl?download=true", False),
        ("https://host/a-*.jsonl?download=true", True),
        ("a/b.jsonl", False),
    ],
)
def test_the_query_of_a_web_address_is_no_pattern(path: str, expected: bool) -> None:
    assert is_pattern(path) == expected


def test_an_address_of_fsspec_is_read_as_a_file_or_a_folder() -> None:
    files = fsspec.filesystem("memory")
    for name in ("b.jsonl", "a.jsonl", "notes.txt"):
        files.pipe_file(f"/megacov-files/{name}", LINE)
    assert names_of("memory://megacov-files") == [f"memory:///megacov-files/{name}" for name in ("a.jsonl", "b.jsonl")]
    (file,) = find_files("memory://megacov-files/a.jsonl")
    assert list(read_rows(file)[1]) == [(1, {"prompt": "1=", "answer": "1"})]
    assert file.sha256 == hashlib.sha256(LINE).hexdigest()
    with pytest.raises(DataError, match="There is no prompt file memory://megacov-files/gone.jsonl; correct data.path"):
        read_rows(DataFile("memory://megacov-files/gone.jsonl", is_local=False))


READ_ADDRESSES = """
import sys
from megacov.data.files import find_files
from megacov.data.rows import read_rows
from megacov.errors import DataError
for address in sys.argv[1:]:
    try:
        for file in find_files(address):
            print(file.name, len(list(read_rows(file)[1])))
    except DataError as error:
        print(error)
    print()
"""


def test_a_data_set_of_the_hub_is_read_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "main/train-0.jsonl", "main/train-1.jsonl", "main/test-0.jsonl", "README.md", "one/a.jsonl")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)

    def read(address: str, *addresses: str) -> list[str]:
        # huggingface_hub reads the address of the Hub when it is imported.
        monkeypatch.setenv("HF_ENDPOINT", address)
        command = [sys.executable, "-c", READ_ADDRESSES, *addresses]
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        return result.stdout.split("\n\n")[:-1]

    with local_datasets(tmp_path) as address:
        found = read(
            address,
            *(f"hf:{DATASET_ID}{rest}" for rest in ("/main/train-*.jsonl", "/**/train-*", "/one", "")),
            f"hf://datasets/{DATASET_ID}/one/a.jsonl",
            "hf:org/none",
        )
    training = "\n".join(f"hf://datasets/{DATASET_ID}/main/train-{k}.jsonl 1" for k in (0, 1))
    one = f"hf://datasets/{DATASET_ID}/one/a.jsonl 1"
    assert [*found[:3], found[4]] == [training, training, one, one]
    assert "hf:org/sums holds files of several splits (train and test), such as" in found[3]
    assert found[3].endswith("name the files, as in hf:org/sums/**/*train*, or a folder of them.")
    assert "org/none cannot be read (HfHubHTTPError: " in found[5]
    (refused,) = read(address, f"hf:{DATASET_ID}")
    assert "hf:org/sums cannot be read (ConnectError: " in refused and "or copy the file to this machine" in refused


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("nosuch://a/b.jsonl", "Protocol not known: nosuch"),
        pytest.param(
            "https://localhost/a.jsonl",
            "ImportError: .*aiohttp",
            marks=pytest.mark.skipif(find_spec("aiohttp") is not None, reason="aiohttp is installed"),
        ),
    ],
)
def test_an_address_without_a_client_is_one_sentence(address: str, words: str) -> None:
    with pytest.raises(DataError, match=f"{address} cannot be read .*{words}") as error:
        find_files(address)
    assert "\n" not in str(error.value)


def test_which_paths_are_local_and_one_digest_for_several(tmp_path: Path) -> None:
    assert [local_path(path) for path in ("a.jsonl", "s3://b/a.jsonl", "hf:org/name")] == [Path("a.jsonl"), None, None]
    one = DataFile(str(written(tmp_path, "a.jsonl") / "a.jsonl")).sha256
    assert digest_of([one]) == one == hashlib.sha256(LINE).hexdigest()
    assert len({digest_of(each) for each in ([one], [one, one], [one, "b"], ["b", one])}) == 4
