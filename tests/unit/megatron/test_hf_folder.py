"""A model folder holds exactly its model's tensors, in the files its index lists; otherwise an error names one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from megacov.errors import DataError
from megacov.megatron import hf_folder
from megacov.megatron.hf_folder import HfFolder
from megacov.megatron.model_shape import read_model_shape
from megacov.megatron.weights import check_hf_weights
from tests.support.families import make_model

Q, NORM = "model.layers.1.self_attn.q_proj.weight", "model.norm.weight"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("qwen3"), "qwen3")


def write(source: Path, folder: Path, *, num_files: int = 1, rename=lambda index: index, **changes) -> Path:
    """Write the model in several files with an index; a change replaces a tensor, or removes it if it is None."""
    tensors = load_file(source / "model.safetensors") | changes
    names = [name for name in tensors if tensors[name] is not None]
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text((source / "config.json").read_text())
    weight_map = {}
    for number in range(num_files):
        own = names[number::num_files]
        save_file({name: tensors[name] for name in own}, folder / f"part-{number}.safetensors")
        weight_map |= dict.fromkeys(own, f"part-{number}.safetensors")
    if num_files > 1:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": rename(weight_map)}))
    return folder


def check(folder: Path) -> None:
    check_hf_weights(folder, read_model_shape(folder))


@pytest.mark.parametrize("num_files", [1, 3])
def test_tensors_and_parts_of_them_are_read_as_they_were_written(source, tmp_path, num_files):
    folder = write(source, tmp_path, num_files=num_files)
    check(folder)
    whole = load_file(source / "model.safetensors")
    found = HfFolder(folder)
    assert all(torch.equal(found.read(name), tensor) for name, tensor in whole.items())
    assert torch.equal(found.read(Q, dim=0, start=8, stop=24), whole[Q][8:24])
    assert torch.equal(found.read(Q, dim=1, start=3, stop=4), whole[Q][:, 3:4])
    assert found.read(Q, dim=0, start=64, stop=64).shape == (0, 32)


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({Q: None}, f"lacks {Q}: its weights do not fit its config.json"),
        ({"model.layers.4.mlp.up_proj.weight": torch.ones(64, 32)}, "holds model.layers.4.mlp.up_proj.weight, which"),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}, "holds model.layers.0.self_attn.q_proj.bias, which"),
        ({NORM: torch.ones(16)}, rf"{NORM} has shape \(16,\) and config.json says \(32,\)"),
        ({Q: torch.ones(32, 32)}, rf"{Q} has shape \(32, 32\) and config.json says \(64, 32\)"),
    ],
)
def test_a_missing_extra_or_mis_shaped_tensor_is_named(source, tmp_path, num_files, changes, sentence):
    with pytest.raises(DataError, match=sentence):
        check(write(source, tmp_path, num_files=num_files, **changes))


@pytest.mark.parametrize(
    ("rename", "sentence"),
    [
        (
            lambda index: index | {NORM: "part-9.safetensors"},
            f"lists {NORM} in part-9.safetensors, which does not exist",
        ),
        (
            lambda index: index | {"ghost": "part-0.safetensors"},
            "lists ghost in part-0.safetensors, which does not hold it",
        ),
        (
            lambda index: index | {NORM: f"part-{(int(index[NORM][5]) + 1) % 3}.safetensors"},
            f"holds {NORM}, but .* lists it in part",
        ),
        (lambda index: {k: v for k, v in index.items() if k != NORM}, f"holds {NORM}, but .* lists it in no file"),
        (lambda index: index | {NORM: "../part-0.safetensors"}, "names ../part-0.safetensors, which is not a file of"),
        (lambda index: [], "has no weight_map"),
        (lambda index: {NORM: 3}, "has no weight_map"),
    ],
)
def test_an_index_that_disagrees_with_its_files_is_refused(source, tmp_path, rename, sentence):
    folder = write(source, tmp_path, num_files=3, rename=rename)
    with pytest.raises(DataError, match=sentence):
        check(folder)


def test_a_missing_file_is_named_with_a_tensor_that_it_held(source, tmp_path):
    folder = write(source, tmp_path, num_files=3)
    (folder / "part-1.safetensors").unlink()
    with pytest.raises(DataError, match="lists model.* in part-1.safetensors, which does not exist"):
        check(folder)


def test_an_index_that_is_no_json_is_refused(source, tmp_path):
    folder = write(source, tmp_path)
    (folder / "model.safetensors.index.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        HfFolder(folder)


def test_files_that_the_index_does_not_name_are_not_the_models(source, tmp_path):
    folder = write(source, tmp_path, num_files=3)
    save_file({"tok_embeddings.weight": torch.ones(2)}, folder / "consolidated.safetensors")
    check(folder)
    with pytest.raises(KeyError):
        HfFolder(folder).read("tok_embeddings.weight")


def test_without_an_index_a_tensor_in_two_files_is_refused(source, tmp_path):
    folder = write(source, tmp_path)
    save_file({NORM: torch.ones(32)}, folder / "again.safetensors")
    with pytest.raises(DataError, match=f"holds {NORM}, and so does again.safetensors: keep one"):
        HfFolder(folder)


def test_frequencies_that_old_llama_folders_hold_are_passed_over(tmp_path):
    llama = make_model(tmp_path / "llama", "llama2")
    changes = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)}
    check(write(llama, tmp_path / "old", **changes))
    with pytest.raises(DataError, match="rotary_emb.inv_freq, which this model does not have"):
        check(write(make_model(tmp_path / "qwen", "qwen2"), tmp_path / "odd", **changes))


HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


@pytest.mark.parametrize("num_files", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_head_beside_tied_embeddings_must_be_the_same(tmp_path, monkeypatch, num_files, dtype):
    monkeypatch.setattr(hf_folder, "_ROWS", 5)  # the vocabulary is compared in several parts
    tied = make_model(tmp_path / "tied", "qwen2", dtype=dtype)
    embedding = load_file(tied / "model.safetensors")[EMBEDDING]
    check(write(tied, tmp_path / "equal", num_files=num_files, **{HEAD: embedding.clone()}))
    changed = embedding.clone()
    changed[-1, -1] += 1
    for number, head in enumerate((changed, embedding[:, :-1].contiguous())):
        folder = write(tied, tmp_path / f"other{number}", num_files=num_files, **{HEAD: head})
        with pytest.raises(DataError, match=f"tie_word_embeddings is true .* {HEAD} differs from {EMBEDDING}"):
            check(folder)


def test_a_head_that_differs_is_what_transformers_would_keep(tmp_path):
    tied = make_model(tmp_path / "tied", "qwen2")
    head = torch.ones_like(load_file(tied / "model.safetensors")[EMBEDDING])
    folder = write(tied, tmp_path / "other", **{HEAD: head})
    (folder / "part-0.safetensors").rename(folder / "model.safetensors")
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).lm_head.weight, head)


def test_an_index_is_refused_beside_another_model_in_one_file(source, tmp_path):
    folder = write(source, tmp_path, num_files=3)
    stray = {name: torch.zeros_like(tensor) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(stray, folder / "model.safetensors")
    assert not AutoModelForCausalLM.from_pretrained(folder).model.norm.weight.any(), "transformers takes the one file"
    with pytest.raises(DataError, match=r"model.safetensors, which transformers .* part-\d.safetensors, which SGLang"):
        check(folder)


def test_an_index_of_the_one_file_is_no_second_model(source, tmp_path):
    folder = write(source, tmp_path)
    (folder / "part-0.safetensors").rename(folder / "model.safetensors")
    names = load_file(folder / "model.safetensors")
    index = {"weight_map": dict.fromkeys(names, "model.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check(folder)


def test_weights_of_other_formats_and_variants_are_passed_over_as_transformers_does(source, tmp_path):
    folder = write(source, tmp_path)
    (folder / "part-0.safetensors").rename(folder / "model.safetensors")
    torch.save({NORM: torch.zeros(32)}, folder / "pytorch_model.bin")
    for name in ("pytorch_model.bin", "model.fp16.safetensors", "consolidated.safetensors"):
        (folder / f"{name}.index.json").write_text(json.dumps({"weight_map": {NORM: "absent"}}))
    check(folder)
    expected = load_file(source / "model.safetensors")[NORM]
    assert torch.equal(HfFolder(folder).read(NORM), expected)
    assert torch.equal(AutoModelForCausalLM.from_pretrained(folder).model.norm.weight, expected)


@pytest.mark.parametrize("stray", ["model-00001-of-00002.safetensors", "a.safetensors"])
def test_one_file_beside_others_with_its_tensors_is_refused(source, tmp_path, stray):
    folder = write(source, tmp_path)
    (folder / "part-0.safetensors").rename(folder / "model.safetensors")
    save_file({"elsewhere": torch.ones(2)}, folder / stray)
    check(folder)
    save_file({NORM: torch.ones(32)}, folder / stray)
    with pytest.raises(DataError, match=rf"model.safetensors holds {NORM}, and so does {stray}: keep one"):
        check(folder)


def test_an_adapter_is_refused(source, tmp_path):
    folder = write(source, tmp_path)
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="holds an adapter .* merge it"):
        check(folder)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int8])
def test_quantized_weights_without_scales_are_refused(source, tmp_path, dtype):
    folder = write(source, tmp_path, **{Q: torch.ones(64, 32).to(dtype)})
    with pytest.raises(DataError, match=rf"{Q} has dtype (F8_E4M3|I8), .* take the model that is not quantized"):
        check(folder)
