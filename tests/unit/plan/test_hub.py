"""A model's id on the Hub becomes a folder, downloaded once; without a network, the error has the command to run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest
from typer.testing import CliRunner

from megacov.cli.check_plan import plan_run
from megacov.cli.main import app
from megacov.cli.model_source import with_local_model
from megacov.config import RunConfig, load_config
from megacov.errors import DataError
from megacov.launch import RankEnvironment
from megacov.plan.hub import cached_model, download_command, download_model, hub_id, wait_for_model
from tests.support.local_hub import COMMIT, MODEL_ID, local_hub

TINY_POLICY = Path(__file__).parents[3] / "examples" / "tiny_policy"
DEADLINE = "parallel.control_timeout_s=20.0"
STALE = ("pytorch_model.bin", "code.py", "original/params.json", "consolidated.safetensors", "model.gguf")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    """A hub on the loopback and an empty cache."""
    model = shutil.copytree(TINY_POLICY, tmp_path / "of_hub")
    for name in STALE:
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("unwanted")
    with local_hub(model) as (address, fetched):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        template = huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE
        here = template.replace(huggingface_hub.constants.ENDPOINT, address)
        monkeypatch.setattr(huggingface_hub.constants, "HUGGINGFACE_CO_URL_TEMPLATE", here)
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        yield address, fetched


def config_of(*overrides: str) -> RunConfig:
    return load_config("yaml_configs/runs/tiny_grpo.yaml", [f"model.path={MODEL_ID}", DEADLINE, *overrides])


def rank(local_rank: int) -> RankEnvironment:
    return RankEnvironment(rank=local_rank, local_rank=local_rank, world_size=2, init_method="env://")


def test_only_what_looks_like_no_local_path_is_an_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "local").mkdir()
    for path in (
        "gone",
        "a/b/c",
        "/org/name",
        "./gone",
        "../org/name",
        "local/gone",
        "models/name",
        "~/name",
        "org/na me",
        "org/",
        f"local/{'a' * 300}",
    ):
        assert hub_id(Path(path)) is None, path
    assert hub_id(Path("Qwen/Qwen2.5-32B")) == "Qwen/Qwen2.5-32B"
    (tmp_path / "Qwen" / "Qwen2.5-32B").mkdir(parents=True)
    assert hub_id(Path("Qwen/Qwen2.5-32B")) is None


def test_a_model_is_downloaded_once_and_recorded_by_its_commit(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    _, fetched = hub
    config, overrides = with_local_model(config_of())
    kept = sorted(path.name for path in TINY_POLICY.iterdir() if path.suffix in (".json", ".safetensors", ".jinja"))
    assert sorted(fetched) == sorted(path.name for path in config.model.path.iterdir()) == kept
    assert config.model.path.is_relative_to(tmp_path / "cache") and config.model.revision == COMMIT
    assert (config.model.path / "model.safetensors").read_bytes() == (TINY_POLICY / "model.safetensors").read_bytes()
    assert config_of(*overrides).model == config.model
    assert with_local_model(config_of(*overrides)) == (config_of(*overrides), []), "ranks and a resumed run load that"
    for revision in (None, "main", COMMIT):
        assert download_model(MODEL_ID, revision) == cached_model(MODEL_ID, revision) == config.model.path
    assert len(fetched) == len(kept), "nothing is fetched twice"
    assert plan_run(config_of()).model_file == config.model.path / "config.json", "`check` reads it from the cache"


def test_other_ranks_of_a_node_wait_for_the_first(hub: tuple[str, list[str]]) -> None:
    with pytest.raises(DataError, match=r"not downloaded by the first rank of this node within 0 s; .* `hf download"):
        wait_for_model(MODEL_ID, None, timeout_s=0.0)
    assert hub[1] == []
    found: list[Path] = []
    waiting = threading.Thread(target=lambda: found.append(with_local_model(config_of(), rank(1))[0].model.path))
    waiting.start()
    first, _ = with_local_model(config_of(), rank(0))
    waiting.join(timeout=60)
    assert found == [first.model.path]
    assert len(hub[1]) == len(set(hub[1])), "one of them downloads"


@pytest.mark.parametrize(
    ("model_id", "revision", "offline", "reason"),
    [
        (MODEL_ID, None, True, "offline mode|HF_HUB_OFFLINE|outgoing traffic"),
        ("org/gone", None, False, "could not be downloaded: "),
        (MODEL_ID, "v9", False, "could not be downloaded: "),
        (MODEL_ID, None, False, "could not be downloaded: "),
    ],
    ids=["HF_HUB_OFFLINE", "no such model", "no such revision", "no network"],
)
def test_without_it_the_error_has_the_command_to_run_elsewhere(
    hub: tuple[str, list[str]], monkeypatch: pytest.MonkeyPatch, model_id, revision, offline, reason
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", offline)
    if reason == "could not be downloaded: " and model_id == MODEL_ID and revision is None:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(DataError, match=reason) as error:
        with_local_model(config_of(f"model.path={model_id}", *([f"model.revision={revision}"] if revision else [])))
    sentence = str(error.value)
    assert "\n" not in sentence
    assert f"model.path is {model_id}: there is no such folder" in sentence
    assert f"`{download_command(model_id, revision)}`, copy the folder here" in sentence


def test_check_looks_at_a_model_in_the_cache(hub: tuple[str, list[str]]) -> None:
    download_model(MODEL_ID, None)
    other = "model.config_file=yaml_configs/models/qwen2.5-32b/config.json"
    result = CliRunner().invoke(
        app, ["check", "yaml_configs/runs/tiny_grpo.yaml", f"model.path={MODEL_ID}", other, "parallel.data=1"]
    )
    assert "is of another model than" in str(result.exception)


def test_check_and_dry_runs_download_nothing(hub: tuple[str, list[str]]) -> None:
    for look in (plan_run, lambda config: with_local_model(config, downloads=False)):
        with pytest.raises(DataError, match=rf"{MODEL_ID}: .* not in the local cache, and nothing was downloaded"):
            look(config_of())
    of_file = plan_run(config_of(f"model.config_file={TINY_POLICY / 'config.json'}"))
    assert of_file.model_file == TINY_POLICY / "config.json"
    assert hub[1] == []


def test_the_command_is_one_that_the_client_of_the_hub_takes(hub: tuple[str, list[str]], tmp_path: Path) -> None:
    words = shlex.split(download_command(MODEL_ID, "main"))
    words[0] = str(Path(sys.executable).with_name("hf"))
    environment = os.environ | {"HF_ENDPOINT": hub[0], "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = sorted(path.name for path in (tmp_path / "tiny-model").iterdir() if path.is_file())
    assert found == sorted(hub[1]) and "model.safetensors" in found and "pytorch_model.bin" not in found
