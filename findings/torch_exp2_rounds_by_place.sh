#!/bin/sh
# torch 2.13.0: an element's exp2 depends on where it stands in its tensor.
#
# Expected: exp2 of a part of a tensor is that part of exp2 of the tensor, as with exp.
# Seen:     on a CPU the elements that follow the last pair of whole vectors, in float32 all of a tensor of 16, are
#           computed by another routine, and some of them differ in the last bit. So a block of rows has other bits
#           than its rows alone.
# So:       `exp2` of megacov/ops/row_blocks.py lets torch compute whole vectors only; a test compares blocks of rows.
#
# Run with: sh findings/torch_exp2_rounds_by_place.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0
cat >"$folder/place.py" <<'PYTHON'
import torch

torch.set_num_threads(1)
torch.manual_seed(0)
print(f"torch {torch.__version__.partition('+')[0]}")
for name in ("exp", "exp2"):
    for dtype in (torch.float32, torch.float64):
        values = -30 * torch.rand(4096, dtype=dtype)
        function = getattr(torch, name)
        parts = torch.cat([function(values[start : start + 16]) for start in range(0, 4096, 16)])
        whole = function(values)
        differ = parts != whole
        worst = ((parts - whole).abs() / whole).max().item() / torch.finfo(dtype).eps
        print(f"{name} {dtype}: parts of 16 differ: {differ.any().item()}, by at most one bit: {worst <= 1}")
PYTHON
"$folder/venv/bin/python" -W ignore "$folder/place.py" | tee "$folder/seen"
grep -q "^exp torch.float32: parts of 16 differ: False" "$folder/seen"
grep -q "^exp torch.float64: parts of 16 differ: False" "$folder/seen"
grep -q "^exp2 torch.float32: parts of 16 differ: True, by at most one bit: True" "$folder/seen"
