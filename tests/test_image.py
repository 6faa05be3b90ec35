"""docker/Dockerfile agrees with the files whose versions it repeats, what it copies, and the sites that use it."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from megacov.config.secret_values import is_secret
from megacov.launch.site import read_site

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docker" / "Dockerfile").read_text()
# As Docker reads it: comments are no instructions, and a backslash goes on with the line.
LINES = re.sub(r"\\\n\s*", "", "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))).splitlines()
ARGS = dict(re.findall(r"^ARG (\w+)=(\S+)$", TEXT, re.MULTILINE))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SITES = {name: read_site(ROOT / "slurm" / "sites" / f"{name}.env") for name in ("pyxis", "apptainer")}


def pins(name: str) -> dict[str, str]:
    lines = (ROOT / name).read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines if "==" in line}


TRAINER, SERVERS = pins("constraints.txt"), pins("constraints-sglang.txt")


def test_versions_that_are_pinned_elsewhere_are_not_repeated():
    named = re.findall(r"([A-Za-z][\w.-]*)(?:\[[^]]*\])?==", "\n".join(LINES))
    # With a $ behind it or a pattern, it is read from the file.
    fixed = {canonicalize_name(name) for name in named if not re.search(rf"(\^{name}==|{name}(\[[^]]*\])?==\$)", TEXT)}
    assert not fixed & (TRAINER.keys() | SERVERS.keys())


def test_comments_name_the_versions_that_are_pinned():
    said = re.findall(r"(torch|SGLang|megatron-core) (\d+\.\d+\.\d+)(?! that)", TEXT)
    expected = {"torch": TRAINER["torch"], "SGLang": SERVERS["sglang"], "megatron-core": TRAINER["megatron-core"]}
    assert dict(said) == expected


def test_every_version_that_is_looked_up_is_there_once():
    looked_up = re.findall(r"grep '(\^\S+)' /opt/pins/(\S+)\)", "\n".join(LINES))
    assert {name for _, name in looked_up} == {"constraints.txt", "constraints-sglang.txt"}
    for pattern, name in looked_up:
        assert len(re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)) == 1


def test_transformer_engine_is_one_that_megatron_core_and_the_project_allow():
    asked = [Requirement(line) for line in PROJECT["optional-dependencies"]["gpu"]]
    asked += [Requirement(line) for line in requires("megatron-core") or []]
    asked = [one for one in asked if one.name == "transformer-engine"]
    assert len(asked) >= 2
    # The newest megatron-core, with which some tests also run, may ask for a newer one.
    if version("megatron-core") == TRAINER["megatron-core"]:
        assert all(one.specifier.contains(ARGS["TRANSFORMER_ENGINE"]) for one in asked)
    assert "==${TRANSFORMER_ENGINE}" in TEXT


def test_apex_is_nvidias_at_one_commit():
    assert "apex @ git+https://github.com/NVIDIA/apex@${APEX_COMMIT}" in TEXT
    assert re.fullmatch(r"[0-9a-f]{40}", ARGS["APEX_COMMIT"])
    assert "APEX_CPP_EXT=1 APEX_CUDA_EXT=1" in TEXT


def test_its_python_is_one_that_the_project_takes():
    assert SpecifierSet(PROJECT["requires-python"]).contains(ARGS["PYTHON"])


def test_images_it_builds_on_are_named_by_a_version():
    for image in re.findall(r"^FROM (\S+)", TEXT, re.MULTILINE):
        assert re.search(r":\d+\.\d+\.\d+", image)


def test_what_is_copied_exists_and_reaches_the_builder():
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    copied = [
        name for line in LINES if line.startswith("COPY ") and "--from" not in line for name in line.split()[1:-1]
    ]
    assert copied
    assert sorted(copied) == sorted(allowed)
    assert all((ROOT / name).exists() for name in copied)


def test_sites_run_the_trainers_environment_and_the_page_makes_their_images():
    made = re.findall(r"uv venv .*?(/opt/\w+)", TEXT)
    assert made == ["/opt/megacov", "/opt/sglang"]
    page = (ROOT / "docs" / "slurm.md").read_text()
    for site in SITES.values():
        assert site.python == "/opt/megacov/bin/python"
        assert site.image in page
    # The server command's python, by default, is the first on the path.
    assert "ENV PATH=/opt/sglang/bin:/opt/megacov/bin:" in TEXT


def test_it_ends_as_a_user_and_holds_no_secret():
    assert [line for line in LINES if line.startswith("USER ")] == ["USER 10001"]
    assert LINES.index("USER 10001") > max(i for i, line in enumerate(LINES) if line.startswith(("RUN ", "COPY ")))
    for name, value in re.findall(r"\b([A-Z][A-Z_]+)=(\S*)", "\n".join(LINES)):
        assert not is_secret(name, value)


def test_the_two_environments_end_with_one_nccl():
    last = [line for line in LINES if "nvidia-nccl-cu13" in line]
    assert len(last) == 1
    assert LINES.index(last[0]) > max(i for i, line in enumerate(LINES) if line.endswith("/opt/src"))


@pytest.mark.parametrize("name", SITES)
def test_every_container_site_names_its_image(name):
    assert SITES[name].container == name
