"""Model folders on disk: complete and loadable by Hugging Face's names, or absent."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from megacov.errors import WeightSyncError
from megacov.weight_sync.snapshot import write_snapshot
from tests.support.tiny_model import make_tiny_model

HUGE = 10**9


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return make_tiny_model(tmp_path_factory.mktemp("source"))


@pytest.fixture
def weights(source) -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(tensor) for name, tensor in load_file(source / "model.safetensors").items()}


def loaded(folder) -> dict[str, torch.Tensor]:
    return {name: tensor.detach() for name, tensor in AutoModelForCausalLM.from_pretrained(folder).named_parameters()}


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_snapshot_is_a_model_folder(source, weights, tmp_path):
    folder = tmp_path / "deep" / "v1"
    written = write_snapshot(folder, weights.items(), source_model=source, max_shard_bytes=HUGE)
    assert written.records == () and written.num_bytes == sum(4 * tensor.numel() for tensor in weights.values())
    assert_equal(loaded(folder), weights)
    assert (
        AutoTokenizer.from_pretrained(folder)("12")["input_ids"]
        == AutoTokenizer.from_pretrained(source)("12")["input_ids"]
    )
    assert [path.name for path in folder.parent.iterdir()] == ["v1"]


def test_large_weights_are_split_into_files(source, weights, tmp_path):
    write_snapshot(tmp_path / "v1", weights.items(), source_model=source, max_shard_bytes=2500)
    files = sorted(path.name for path in (tmp_path / "v1").glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files == [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
    index = json.loads((tmp_path / "v1" / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == weights.keys()
    assert_equal(loaded(tmp_path / "v1"), weights)
    for file in files:
        tensors = load_file(tmp_path / "v1" / file)
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= 2500


def test_the_index_of_the_source_is_not_copied(source, weights, tmp_path):
    split = tmp_path / "split"
    write_snapshot(split, weights.items(), source_model=source, max_shard_bytes=2500)
    (split / "code.py").write_text("raise SystemExit")
    write_snapshot(tmp_path / "v1", weights.items(), source_model=split, max_shard_bytes=HUGE)
    assert_equal(loaded(tmp_path / "v1"), weights)
    names = {path.name for path in (tmp_path / "v1").iterdir()}
    assert "model.safetensors.index.json" not in names
    assert "code.py" not in names


STALE = [
    "pytorch_model.bin.index.json",
    "model.fp16.safetensors.index.json",
    "pytorch_model.bin",
    "model.gguf",
    "consolidated.00.pth",
    "consolidated.safetensors",
    "params.json",
    "adapter_config.json",
    "optimizer.pt",
    "hf_quant_config.json",
    "quantize_config.json",
    "original/params.json",
    "original/consolidated.00.pth",
]
KEPT = ("generation_config.json", "chat_template.jinja", "additional_chat_templates/rag.jinja", "vocab.txt")


def test_nothing_is_copied_that_describes_weights_which_are_not_there(source, weights, tmp_path):
    model = shutil.copytree(source, tmp_path / "model")
    for name in (*STALE, *KEPT):
        (model / name).parent.mkdir(exist_ok=True)
        (model / name).write_text("{}")
    write_snapshot(tmp_path / "v1", weights.items(), source_model=model, max_shard_bytes=HUGE)
    found = {path.relative_to(tmp_path / "v1").as_posix() for path in (tmp_path / "v1").rglob("*") if path.is_file()}
    expected = {path.name for path in source.iterdir()} | set(KEPT)
    assert found == expected, "every file of the model, and none of the stale ones"


@pytest.mark.parametrize("keys", [("dtype",), ("torch_dtype",), ("dtype", "torch_dtype"), ()])
def test_the_configuration_names_the_dtype_of_the_weights(source, weights, tmp_path, keys):
    model = shutil.copytree(source, tmp_path / "model")
    values = json.loads((model / "config.json").read_text())
    del values["dtype"]
    (model / "config.json").write_text(json.dumps(values | dict.fromkeys(keys, "float32")))
    half = {name: tensor.bfloat16() for name, tensor in weights.items()}
    write_snapshot(tmp_path / "v1", half.items(), source_model=model, max_shard_bytes=HUGE)
    written = json.loads((tmp_path / "v1" / "config.json").read_text())
    assert written == values | dict.fromkeys(keys or ("dtype",), "bfloat16")
    loaded_model = AutoModelForCausalLM.from_pretrained(tmp_path / "v1")
    assert all(torch.equal(value, half[name]) for name, value in loaded_model.named_parameters())
    assert loaded_model.dtype == torch.bfloat16


def test_a_folder_that_fails_its_check_does_not_appear(source, weights, tmp_path):
    def refuse(folder):
        assert (folder / "config.json").is_file() and (folder / "model.safetensors").is_file()
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_snapshot(tmp_path / "v1", weights.items(), source_model=source, max_shard_bytes=HUGE, check=refuse)
    assert list(tmp_path.iterdir()) == []


def test_views_and_shared_storage_are_written_by_value(source, tmp_path):
    buffer = torch.randn(6, 4)
    named = {"view": buffer[2:4], "transposed": buffer.t(), "whole": buffer, "again": buffer, "half": buffer.bfloat16()}
    before = buffer.clone()
    write_snapshot(tmp_path / "v1", named.items(), source_model=source, max_shard_bytes=HUGE)
    assert_equal(load_file(tmp_path / "v1" / "model.safetensors"), named)
    assert torch.equal(buffer, before)


def test_an_older_snapshot_of_the_name_is_replaced(source, weights, tmp_path):
    write_snapshot(tmp_path / "v1", weights.items(), source_model=source, max_shard_bytes=2500)
    newer = {name: tensor + 1.0 for name, tensor in weights.items()}
    write_snapshot(tmp_path / "v1", newer.items(), source_model=source, max_shard_bytes=HUGE)
    assert_equal(loaded(tmp_path / "v1"), newer)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


@pytest.mark.parametrize("exists", [False, True])
def test_a_failure_half_way_leaves_nothing_or_the_older_one(source, weights, tmp_path, exists):
    if exists:
        write_snapshot(tmp_path / "v1", weights.items(), source_model=source, max_shard_bytes=HUGE)

    def broken():
        yield from list(weights.items())[:5]
        raise ArithmeticError

    with pytest.raises(ArithmeticError):
        write_snapshot(tmp_path / "v1", broken(), source_model=source, max_shard_bytes=2500)
    assert [path.name for path in tmp_path.iterdir()] == (["v1"] if exists else [])
    if exists:
        assert_equal(loaded(tmp_path / "v1"), weights)


def test_a_place_that_cannot_be_written_is_named(source, weights, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(WeightSyncError, match=r"file/v1 .* another folder"):
        write_snapshot(tmp_path / "file" / "v1", weights.items(), source_model=source, max_shard_bytes=HUGE)
