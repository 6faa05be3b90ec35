#!/bin/sh
# Triton 3.7.1, interpreter (TRITON_INTERPRET=1): the maximum of NaN and a number.
#
# Expected: the number: by their defaults tl.maximum and tl.minimum do not propagate NaN.
# Seen:     NaN from both. In 3.8.0 they give the number.
# So:       the interpreter cannot show that a kernel swallows NaN on a GPU; the tests look for the instruction that keeps
#           it in the compiled code (tests/unit/ops/test_kernels.py).
#
# Run with: sh findings/triton_interpreter_maximum_keeps_nan.sh [python3.11]. Needs a network or a package mirror, and
# takes some 3 GB for a while.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0 numpy
cat >"$folder/extremes.py" <<'PYTHON'
import sys

import torch
import triton
import triton.language as tl


@triton.jit
def extremes(source, results):
    value = tl.load(source)
    tl.store(results, tl.maximum(value, -1.0))
    tl.store(results + 1, tl.minimum(value, 1.0))


print(f"triton {triton.__version__}")
assert triton.__version__ == sys.argv[1]
results = torch.zeros(2)
extremes[(1,)](torch.tensor([float("nan")]), results)
print(f"maximum(NaN, -1) and minimum(NaN, 1): {results.tolist()}")
assert results.isnan().all() if sys.argv[1] == "3.7.1" else results.tolist() == [-1.0, 1.0], "this has changed"
PYTHON
for version in 3.7.1 3.8.0; do
	"$folder/venv/bin/pip" --quiet install --no-deps "triton==$version"
	TRITON_INTERPRET=1 "$folder/venv/bin/python" -W ignore "$folder/extremes.py" "$version"
done
