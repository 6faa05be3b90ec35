#!/bin/sh
# transformers 5.23.0: names and shapes of a mixture of experts in memory, and in the files that the same model writes.
#
# Expected: model.state_dict() has the names that save_pretrained writes, as for dense models.
# Seen:     in memory the experts of a layer are two stacked tensors (experts.gate_up_proj, experts.down_proj); the files
#           have three tensors for each expert. save_pretrained and from_pretrained convert between the two.
# So:       whoever compares a folder with a model, or pushes state_dict() to a server that reads files' names, must
#           convert the names first. megacov's check of exports does (megacov/trainer/saving/export_check.py).
#
# Run with: sh findings/transformers_moe_names_in_memory.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0
"$folder/venv/bin/pip" --quiet install transformers==5.23.0 safetensors==0.8.0 numpy
cd "$folder"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" - <<'PYTHON'
import transformers
from safetensors import safe_open

config = transformers.Qwen3MoeConfig(
    vocab_size=16,
    hidden_size=8,
    intermediate_size=16,
    moe_intermediate_size=4,
    num_hidden_layers=1,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    num_experts=3,
    num_experts_per_tok=2,
    tie_word_embeddings=False,
)
model = transformers.Qwen3MoeForCausalLM(config)
in_memory = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if ".experts." in name}
model.save_pretrained("model")
with safe_open("model/model.safetensors", framework="pt") as file:
    in_file = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys() if ".experts." in name}
print(f"transformers {transformers.__version__}, experts of a layer in memory:")
for name, shape in sorted(in_memory.items()):
    print(f"  {name} {shape}")
print("and in the file:")
for name, shape in sorted(in_file.items()):
    print(f"  {name} {shape}")
assert transformers.__version__ == "5.23.0"
layer = "model.layers.0.mlp.experts"
assert in_memory == {f"{layer}.gate_up_proj": (3, 8, 8), f"{layer}.down_proj": (3, 8, 4)}, "other names in memory now"
each = {"gate_proj": (4, 8), "up_proj": (4, 8), "down_proj": (8, 4)}
assert in_file == {f"{layer}.{i}.{name}.weight": shape for i in range(3) for name, shape in each.items()}
PYTHON
