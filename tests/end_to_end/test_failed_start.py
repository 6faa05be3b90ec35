"""A start that fails changes nothing: no folder is moved, written or made before all that can be checked has been."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path

import pytest

from tests.support.command import run
from tests.support.policies import TINY_POLICY

KL_COV = "yaml_configs/runs/tiny_kl_cov.yaml"
FINISHED = {
    "config.yaml": "run: {name: earlier, steps: 3}\n",
    "run.lock": "",
    "status.json": "{}",
    "checkpoints/step_00000003/MANIFEST.json": "{}",
}


def content_of(folder: Path) -> dict[str, bytes | None]:
    """Every file and folder below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def model_with_a_large_tokenizer(folder: Path) -> Path:
    shutil.copytree(TINY_POLICY, folder)
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["#"] = 16
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    return folder


@pytest.mark.dist
@pytest.mark.parametrize(
    ("mistake", "code", "words"),
    [
        (["rewards.verifier=sum_triples"], 2, "sum_triples"),
        (["batch.updates_per_rollout=1", "data.max_prompt_length=1"], 3, "data.max_prompt_length"),
        (["rewards.verifier=tests.support.verifiers:one_and_a_half"], 2, "one_and_a_half"),
        (["data.chat_template=true"], 3, "no chat template"),
        (["model.transformer_engine=on"], 2, "transformer_engine cannot be imported"),
        (["data.prompt_field=question"], 3, "question"),
        (["model.path={model}"], 3, "17 tokens"),
        (["rollout.port={port}"], 4, "in use"),
        (
            ["rollout.engine=sglang", "rollout.servers=1", "rollout.server_command=[nowhere-at-all]"],
            4,
            "nowhere-at-all",
        ),
    ],
    ids=lambda value: value[-1].partition("=")[0] if isinstance(value, list) else None,
)
def test_a_failed_start_leaves_a_finished_run_where_it_is(
    mistake: list[str], code: int, words: str, tmp_path: Path
) -> None:
    model = model_with_a_large_tokenizer(tmp_path / "model")
    folder = tmp_path / "runs" / "one"
    for name, text in FINISHED.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    before = content_of(folder.parent)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        overrides = [each.format(model=model, port=port) for each in mistake]
        ended = run("train", KL_COV, f"run.directory={folder}", *overrides, log=tmp_path / "log")
    assert (ended.code, ended.left) == (code, []), ended.output
    # A warning of the configuration is shown before anything fails.
    is_warned = "warning: algorithm.loss.name is kl_cov and batch.updates_per_rollout is 1" in ended.output
    assert is_warned == (mistake[0] == "batch.updates_per_rollout=1")
    assert words in ended.output and "Traceback" not in ended.output
    assert content_of(folder.parent) == before


@pytest.mark.dist
def test_starts_that_fail_late_leave_one_folder_for_the_next(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "one"
    late = ("rollout.start_timeout_s=0.01", f"run.directory={folder}")
    for _ in range(2):
        ended = run("train", KL_COV, *late, log=tmp_path / "log")
        assert (ended.code, ended.left) == (4, []), ended.output
        assert [path.name for path in folder.parent.iterdir()] == ["one"]
    assert len(list((folder / "tensorboard").glob("*"))) <= 1


@pytest.mark.dist
def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    ended = run("train", KL_COV, f"run.directory={tmp_path / 'mine'}", log=tmp_path / "log")
    assert ended.code == 3 and "holds no run of megacov (it holds thesis.tex)" in ended.output
    assert content_of(tmp_path / "mine") == {"thesis.tex": b"years of work"}
