#!/bin/sh
# numba 0.68.1 (llvmlite 0.50.0, numpy 2.4.6) on x86-64: the sum and the maximum of a float32 array, both with fastmath=True.
#
# Expected: fastmath lets the compiler reorder both, so both take a vector of values at a time.
# Seen:     the sum does. The maximum, written with max() or with an if, takes one value after the other (vmaxss, no vmaxps)
#           and some 35 times as long. Without fastmath, 128 maxima side by side, one for each value of a block, are vectorized.
# So:       the loop that looks for a row's largest logit keeps 128 maxima (megacov/ops/kernels/loops.py); with one it would
#           take longer than all else in the forward.
#
# Run with: sh findings/numba_maximum_takes_one_value_at_a_time.sh [python3.11]. Needs a network or a package mirror.
set -eu
[ "$(uname -m)" = x86_64 ] || { echo "this looks at x86-64 instructions"; exit 0; }
grep -qw avx /proc/cpuinfo || { echo "this CPU has no AVX, which numba would use here"; exit 0; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install numba==0.68.1 llvmlite==0.50.0 numpy==2.4.6
cat >"$folder/loops.py" <<'PYTHON'
import re
import time

import numba
import numpy as np


@numba.njit(fastmath=True)
def total(values):
    found = np.float32(0)
    for index in range(values.shape[0]):
        found += values[index]
    return found


@numba.njit(fastmath=True)
def largest(values):
    found = np.float32(-np.inf)
    for index in range(values.shape[0]):
        found = max(found, values[index])
    return found


@numba.njit(fastmath=True)
def largest_by_if(values):
    found = np.float32(-3e38)
    for index in range(values.shape[0]):
        if values[index] > found:
            found = values[index]
    return found


@numba.njit
def largest_of_blocks(values):
    found = np.full(128, -3e38, np.float32)
    for first in range(0, values.shape[0], 128):
        block = values[first : first + 128]
        for lane in range(128):
            found[lane] = block[lane] if block[lane] > found[lane] else found[lane]
    return found.max()


values = np.random.default_rng(0).standard_normal(1 << 16).astype(np.float32)
expected = values.max()
assert largest(values) == largest_by_if(values) == largest_of_blocks(values) == expected
vectorized = {}
for loop in (total, largest, largest_by_if, largest_of_blocks):
    loop(values)
    seconds = []
    for _ in range(100):
        start = time.perf_counter()
        loop(values)
        seconds.append(time.perf_counter() - start)
    code = loop.inspect_asm(loop.signatures[0])
    # An addition, a maximum, or a comparison of packed float32.
    packed = len(re.findall(r"\b(?:vaddps|vmaxps|vcmp\w*ps)\b", code))
    vectorized[loop.__name__] = packed > 0
    print(f"{loop.__name__}: {sorted(seconds)[50] * 1e6:.1f} us, {packed} packed instructions")
assert vectorized == {"total": True, "largest": False, "largest_by_if": False, "largest_of_blocks": True}, "this has changed"
PYTHON
"$folder/venv/bin/python" "$folder/loops.py"
