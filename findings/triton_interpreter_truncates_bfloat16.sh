#!/bin/sh
# Triton 3.7.1, interpreter (TRITON_INTERPRET=1): how float32 becomes bfloat16.
#
# Expected: the nearest bfloat16, as on a GPU and in torch; in any case if a kernel asks for rounding to nearest.
# Seen:     it is cut towards zero, with fp_downcast_rounding="rtne" as well. float16 is rounded to nearest.
# So:       a kernel's bfloat16 results are compared to 1 unit in the last place in the interpreter, and its rounding is
#           checked in the compiled code (tests/unit/ops/test_kernels.py).
#
# Run with: sh findings/triton_interpreter_truncates_bfloat16.sh [python3.11]. Needs a network or a package mirror, and
# takes some 2 GB for a while.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0 numpy
"$folder/venv/bin/pip" --quiet install --no-deps triton==3.7.1
cat >"$folder/casts.py" <<'PYTHON'
import torch
import triton
import triton.language as tl


@triton.jit
def cast(source, plain, nearest, half):
    value = tl.load(source)
    tl.store(plain, value.to(tl.bfloat16))
    tl.store(nearest, value.to(tl.bfloat16, fp_downcast_rounding="rtne"))
    tl.store(half, value.to(tl.float16))


print(f"triton {triton.__version__}, torch {torch.__version__}")
assert triton.__version__ == "3.7.1"
plain, nearest = (torch.zeros(1, dtype=torch.bfloat16) for _ in range(2))
half = torch.zeros(1, dtype=torch.float16)
value = torch.tensor([1 + 2**-8 + 2**-9])  # three quarters of the way to the next bfloat16
cast[(1,)](value, plain, nearest, half)
print(f"{value.item()}: torch {value.bfloat16().item()}, triton {plain.item()}, to nearest {nearest.item()}")
assert value.bfloat16().item() == 1.0078125
assert plain.item() == nearest.item() == 1.0, "the interpreter rounds to nearest now"
value = torch.tensor([1 + 2**-11 + 2**-12])
cast[(1,)](value, plain, nearest, half)
print(f"{value.item()}: float16 {half.item()}")
assert half.item() == value.half().item() == 1.0009765625
PYTHON
TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore "$folder/casts.py"
