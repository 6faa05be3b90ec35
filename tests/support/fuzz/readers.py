"""How each kind of outside text is read, as functions of a folder and a content."""

from __future__ import annotations

import contextlib
import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PreTrainedTokenizerBase

from megacov.checkpoint.manifest import MANIFEST_NAME, FileRecord, Manifest, write_manifest
from megacov.config import dump_config, load_config
from megacov.data.curriculum import CurriculumSettings, PromptAccuracies
from megacov.data.prompts import load_prompts
from megacov.data.tokenizer import load_tokenizer
from megacov.embedded_server.bodies import GenerateBody
from megacov.embedded_server.model import ServedModel
from megacov.embedded_server.requests import build_requests
from megacov.embedded_server.sampling import SamplingPlan
from megacov.embedded_server.weights import load_weights
from megacov.errors import DataError
from megacov.json_text import parse_json
from megacov.launch.gpus import judge_gpus
from megacov.launch.jobs import choose_job, parse_job, parse_list
from megacov.launch.node_report import judge, read_reports
from megacov.launch.partitions import check_partition, parse_partitions
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import read_model_shape
from megacov.rollout.client.capabilities import read_capabilities, version_warning
from megacov.rollout.client.reply import Reply, parsed
from megacov.rollout.client.wire import error_sentence, read_completions
from megacov.rollout.fleet.keys import read_keys
from tests.support.fuzz.seeds import RESOLVED, ROOT, TINY_RUN

VOCABULARY = 1024


def written(name: str, read: Callable[[Path], object]) -> Callable[[Path, bytes], object]:
    """Writes the content to a file of that name before the folder is read."""

    def write_and_read(folder: Path, content: bytes) -> object:
        path = folder / name
        path.write_bytes(content)
        path.chmod(0o600)
        return read(folder)

    return write_and_read


def as_text(content: bytes) -> str:
    """What a command prints, as megacov decodes it."""
    return content.decode(errors="replace")


def read_accuracies(_folder: Path, content: bytes) -> object:
    settings = CurriculumSettings(low=0.2, high=0.8, decay=0.5, right_above=0.5, min_samples=8, revisit_every=3)
    return PromptAccuracies.unknown(settings, num_prompts=3).load(as_text(content))


def load_run(folder: Path) -> None:
    config = load_config(folder / "run.yaml", ["run.name=other"])
    (folder / "again.yaml").write_text(dump_config(config), encoding="utf-8")
    assert load_config(folder / "again.yaml") == config


def prepare_run(folder: Path) -> None:
    (folder / "base.yaml").write_bytes(RESOLVED)
    for each in range(30):
        (folder / f"c{each}.yaml").write_text(f"extends: c{each + 1}.yaml\n")


def read_overrides(_folder: Path, content: bytes) -> None:
    load_config(TINY_RUN, content.decode(errors="surrogateescape").splitlines())


@functools.cache
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(ROOT / "examples" / "tiny_policy", vocab_size=VOCABULARY)


def read_prompts(folder: Path) -> None:
    load_prompts(folder / "p.jsonl", tokenizer(), vocab_size=VOCABULARY, max_prompt_length=64)


def read_shape(folder: Path) -> None:
    with contextlib.suppress(DataError):
        read_model_shape(folder / "absent")
    read_model_shape(folder)


def read_keys_file(folder: Path, content: bytes) -> None:
    path = folder / "keys.yaml"
    path.write_bytes(content)
    path.chmod(0o640 if len(content) % 16 == 0 else 0o600)
    read_keys(path)


def prepare_tokenizer(folder: Path) -> None:
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "examples" / "tiny_policy" / name, folder)


def prepare_weights(folder: Path) -> None:
    save_file({"a.weight": torch.zeros(2, 2), "b.weight": torch.zeros(2, 2)}, folder / "one.safetensors")
    save_file({"c.weight": torch.zeros(2, 2)}, folder / "two.safetensors")
    save_file({"e.weight": torch.zeros(2, 2)}, folder / "other.safetensors")
    save_file({"c.weight": torch.zeros(3, 3)}, folder / "wide.safetensors")
    (folder / "single").mkdir()
    save_file({f"{name}.weight": torch.zeros(2, 2) for name in "abc"}, folder / "single" / "model.safetensors")


def read_index(folder: Path) -> None:
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2, bias=False) for name in "abc"})
    try:
        HfFolder(folder).check({f"{name}.weight": (2, 2) for name in "abc"}, optional=frozenset())
    finally:
        # A folder without an index is read alike, whatever came before.
        HfFolder(folder / "single")
        load_weights(model, folder / "single")
        load_weights(model, folder)


def manifest_seed(folder: Path) -> bytes:
    (folder / "seed").mkdir(exist_ok=True)
    files = tuple(FileRecord(name, 10, "0" * 64) for name in ("trainer.json", "model/part_0"))
    write_manifest(folder / "seed", Manifest(7, files))
    return (folder / "seed" / MANIFEST_NAME).read_bytes()


def read_reply(_folder: Path, content: bytes) -> None:
    try:
        read_completions(content, num_completions=2, vocab_size=VOCABULARY, server="http://x")
    finally:
        assert len(error_sentence(content)) <= 500


def read_reply_object(_folder: Path, content: bytes) -> None:
    info = parsed(Reply("/server_info", 200, content), "http://x")
    read_capabilities(info, server="http://x")
    version_warning(str(info["version"]), server="http://x")


def read_job(_folder: Path, content: bytes) -> None:
    try:
        parse_job(as_text(content), "7")
    finally:
        choose_job(parse_list(as_text(content), Path("/runs/x.sbatch"), ""))


def read_partitions(_folder: Path, content: bytes) -> None:
    check_partition(parse_partitions(as_text(content)), "short", nodes=2, minutes=60)


def read_node_reports(_folder: Path, content: bytes) -> None:
    reports = read_reports(as_text(content).splitlines())
    judge(["node0", "node1"], reports)


def read_gpus(_folder: Path, content: bytes) -> None:
    report, _, links = as_text(content).partition("GPU 0:")
    judge_gpus(report, "GPU 0:" + links, wanted=2)


def read_body(_folder: Path, content: bytes) -> None:
    # Only its limits are read: no forward pass is made.
    served = ServedModel(Path(), None, tokenizer(), frozenset({1}), VOCABULARY, 64)  # type: ignore[arg-type]
    body = GenerateBody.model_validate(parse_json(content))
    for request in build_requests(body, served, on_done=lambda _request: None):
        SamplingPlan.of([request.params])
