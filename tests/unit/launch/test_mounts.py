"""Mounts of a container: whatever the run needs is seen, under the same name, or the job is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megacov.config.load import config_files
from megacov.errors import ConfigError
from megacov.launch.mounts import Place, find_mounts, place_of_file, place_of_folder

PATHS = st.lists(st.sampled_from("abc"), max_size=4).map(lambda parts: Path("/", *parts))


@given(st.lists(PATHS, min_size=1))
def test_derived_mounts_cover_every_path_and_none_is_in_vain(paths: list[Path]) -> None:
    mounts = find_mounts([Place("it", path) for path in paths], "")
    roots = [Path(mount.partition(":")[0]) for mount in mounts.split(",")]
    assert mounts == ",".join(f"{root}:{root}" for root in roots)
    assert all(any(path.is_relative_to(root) for root in roots) for path in paths)
    assert set(roots) <= set(paths)
    assert not any(one != other and one.is_relative_to(other) for one in roots for other in roots)


def test_a_path_outside_the_mounts_of_the_site_is_refused_with_the_line_to_write(tmp_path: Path) -> None:
    (tmp_path / "a" / "deep").mkdir(parents=True)
    places = [Place("model.path", tmp_path / "a"), Place("data.path", tmp_path / "a" / "deep")]
    with pytest.raises(ConfigError, match=rf"does not see model\.path \({tmp_path}/a\): set MEGACOV_MOUNTS=") as one:
        find_mounts(places, "/shared:/shared")
    line = str(one.value).partition("set MEGACOV_MOUNTS=")[2].partition(" ")[0]
    assert line == f"/shared:/shared,{tmp_path}/a:{tmp_path}/a"
    assert find_mounts(places, line) == line
    for covering in (f"/elsewhere:{tmp_path}", f"/elsewhere:{tmp_path}:ro", str(tmp_path)):
        assert find_mounts(places, covering) == covering
    assert find_mounts(places, "/shared:/shared", always=[tmp_path]) == "/shared:/shared"


def test_what_is_not_on_this_machine_may_be_in_the_image() -> None:
    assert find_mounts([Place("model.path", Path("/nowhere/model"))], "/shared:/shared") == "/shared:/shared"
    with pytest.raises(ConfigError, match=r"run\.directory \(/nowhere/runs\)"):
        find_mounts(list(place_of_file("run.directory", Path("/nowhere/runs/one"), is_written=True)), "/shared:/shared")


def test_links_lead_to_what_must_be_mounted_too(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "123").touch()
    (tmp_path / "snapshot").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "snapshot" / name).symlink_to("../blobs/123")
    found = [place.path for place in place_of_folder("model.path", tmp_path / "snapshot")]
    assert found == [tmp_path / "snapshot", tmp_path / "blobs"]
    found = [place.path for place in place_of_file("data.path", tmp_path / "snapshot" / "config.json")]
    assert found == [tmp_path / "snapshot", tmp_path / "blobs"]
    assert [place.path for place in place_of_file("data.path", Path("/a.jsonl"))] == [Path("/a.jsonl")]
    (tmp_path / "snapshot" / "cache").symlink_to("/usr")
    found = [place.path for place in place_of_folder("PYTHONPATH", tmp_path / "snapshot")]
    assert found == [tmp_path / "snapshot", tmp_path / "blobs", Path("/usr")], (
        "a link to a folder is not one to its parent"
    )


@pytest.mark.parametrize("name", ["a,b", "a:b"])
def test_a_path_that_cannot_be_written_as_a_mount(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot contain commas or colons"):
        find_mounts([Place("model.path", Path("/models", name))], "")


def test_a_path_that_leads_out_of_a_folder_is_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    places = list(place_of_folder("model.path", Path("../models")))
    assert find_mounts(places, f"{tmp_path}/models") == f"{tmp_path}/models"
    with pytest.raises(ConfigError, match=rf"does not see model\.path \({tmp_path}/models\)"):
        find_mounts(places, f"{tmp_path}/work")


def test_a_configuration_that_is_a_link_is_seen_under_both_names(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    (tmp_path / "there" / "run.yaml").write_text("extends: ../there/base.yaml\n")
    (tmp_path / "there" / "base.yaml").write_text("run: {steps: 1}\n")
    link = tmp_path / "here" / "run.yaml"
    link.symlink_to("../there/run.yaml")
    places = [place.path for file in config_files(link) for place in place_of_file("the configuration", file)]
    assert set(places) == {tmp_path / "here", tmp_path / "there"}
