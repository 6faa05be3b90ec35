#!/bin/sh
# transformers 5.23.0: which weights a model folder holds if it has both model.safetensors and an index with shards.
#
# Expected: the index, since it lists what belongs to the model; or an error, since the two contradict each other.
# Seen:     from_pretrained takes model.safetensors and does not look at the index, without a word.
# So:       a folder in which a model was saved again, once in shards and once in one file, is another model for a program
#           that follows the index, such as a rollout server. megacov refuses it (megacov/megatron/hf_folder.py).
#
# Run with: sh findings/transformers_one_file_beats_the_index.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0
"$folder/venv/bin/pip" --quiet install transformers==5.23.0 safetensors==0.8.0 numpy
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import contextlib
import io
import json
import logging
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

config = transformers.LlamaConfig(
    vocab_size=16, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=2
)
folder = Path("model")
transformers.LlamaForCausalLM(config).save_pretrained(folder)
one_file = load_file(folder / "model.safetensors")
save_file({name: torch.zeros_like(tensor) for name, tensor in one_file.items()}, folder / "model.safetensors")
names = sorted(one_file)
index = {"metadata": {"total_size": 0}, "weight_map": {}}
for number, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), start=1):
    file = f"model-0000{number}-of-00002.safetensors"
    save_file({name: torch.ones_like(one_file[name]) for name in part}, folder / file, metadata={"format": "pt"})
    index["weight_map"] |= dict.fromkeys(part, file)
(folder / "model.safetensors.index.json").write_text(json.dumps(index))

warnings = io.StringIO()
transformers.utils.logging.get_logger("transformers").addHandler(logging.StreamHandler(warnings))
with contextlib.redirect_stderr(io.StringIO()):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
values = {float(value) for parameter in model.parameters() for value in parameter.flatten()}
print(f"transformers {transformers.__version__}: model.safetensors holds zeros, the shards of the index ones; loaded: {values}")
assert transformers.__version__ == "5.23.0"
assert values == {0.0}, "the index is followed now"
assert "index" not in warnings.getvalue(), "there is a warning now"
PYTHON
