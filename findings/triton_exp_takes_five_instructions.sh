#!/bin/sh
# Triton 3.7.1 and 3.8.0, compiled for an H100 (sm_90): the instructions of tl.exp and of tl.exp2.
#
# Expected: tl.exp(x) is a product with log2(e) and the instruction that tl.exp2(x) is.
# Seen:     five against one. tl.exp2 flushes results below 2^-126 to zero (ex2.approx.ftz, the option enable_reflect_ftz,
#           which is on by default). tl.exp does not heed the option: around the same instruction stand a comparison and two
#           products that keep such results.
# So:       a kernel that takes the exponential of every logit does so in bits (megacov/ops/kernels/forward.py): 10
#           instructions a logit with the sums of a softmax, where memory leaves an H200 time for 12.
#
# Run with: sh findings/triton_exp_takes_five_instructions.sh [python3.11]. Needs a network or a package mirror, no GPU, and
# takes some 3 GB for a while.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0 numpy
cat >"$folder/instructions.py" <<'PYTHON'
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.compiler import ASTSource


@triton.jit
def power(source, result, KIND: tl.constexpr):
    columns = tl.arange(0, 4096)
    value = tl.load(source + columns)
    if KIND == "exp":
        value = tl.exp(value)
    if KIND == "exp2":
        value = tl.exp2(value)
    tl.store(result + columns, value)


def instructions(kind):
    """Those that compute with floats, for each of a thread's 32 elements."""
    types = {"source": "*fp32", "result": "*fp32", "KIND": "constexpr"}
    code = triton.compile(ASTSource(power, types, constexprs={(2,): kind}), target=GPUTarget("cuda", 90, 32))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code.asm["cubin"])
        file.flush()
        tool = Path(compiler.__file__).parent / "bin" / "nvdisasm"
        text = subprocess.run([tool, "--print-code", file.name], capture_output=True, text=True, check=True).stdout
    names = re.findall(r"\*/\s+(?:@!?P\d\s+)?(FMUL|FSETP|MUFU)\b", text)
    return {name: names.count(name) / 32 for name in ("FMUL", "FSETP", "MUFU")}


print(f"triton {triton.__version__}")
assert triton.__version__ == sys.argv[1]
found = {kind: instructions(kind) for kind in ("exp", "exp2")}
for kind, counts in found.items():
    print(f"tl.{kind}: {sum(counts.values()):g} instructions an element, {counts}")
assert found["exp"] == {"FMUL": 3, "FSETP": 1, "MUFU": 1}, "this has changed"
assert found["exp2"] == {"FMUL": 0, "FSETP": 0, "MUFU": 1}, "this has changed"
PYTHON
for version in 3.7.1 3.8.0; do
	"$folder/venv/bin/pip" --quiet install --no-deps "triton==$version"
	TRITON_CACHE_DIR="$folder/cache" "$folder/venv/bin/python" -W ignore "$folder/instructions.py" "$version"
done
