"""Compiles the Triton kernels for an H100, which needs no GPU, and prints facts about the machine code as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import compiler
from triton.compiler import ASTSource

from megacov.ops.kernels import backward, forward
from megacov.ops.vocab_statistics import LOWEST_SHIFT, NATS_PER_BIT

H100 = GPUTarget("cuda", 90, 32)
# Rows of 19,008 columns: strides and sizes can be divided by 16, and so can addresses; the first id of a shard cannot.
SCALARS = {"row_stride": "i32", "grad_stride": "i32", "start": "i32", "num_valid": "i32", "num_columns": "i32"}
DIVISIBLE = [["tt.divisibility", 16]]


def facts_of(kernel, pointers: dict[str, str], constants: dict[str, object], num_warps: int) -> dict[str, object]:
    """What the compiler made of one variant."""
    names = kernel.arg_names
    types = pointers | SCALARS | {"inverse_temperature": "fp32"} | dict.fromkeys(constants, "constexpr")
    source = ASTSource(
        kernel,
        {name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={
            (index,): DIVISIBLE
            for index, name in enumerate(names)
            if name in pointers or (name in SCALARS and name != "start")
        },
    )
    code = triton.compile(source, target=H100, options={"num_warps": num_warps}).asm
    wide = re.findall(r"(ld|st)\.global\.v4\.b32", code["ptx"])
    return {
        "wide_loads": wide.count("ld"),
        "wide_stores": wide.count("st"),
        "nan_maxima": code["ptx"].count("max.NaN.f32"),
        "instructions": instructions(code["cubin"]),
        "roundings": sorted(set(re.findall(r"cvt\.(r\w)\.(?:bf16|f16)", code["ptx"]))),
        **resources(code["cubin"]),
    }


def told_by(tool: str, option: str, cubin: bytes) -> str:
    """What one of the compiler's tools says of machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [Path(compiler.__file__).parent / "bin" / tool, option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def resources(cubin: bytes) -> dict[str, int]:
    """Registers of a thread, and bytes of memory that take what does not fit into them."""
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", told_by("cuobjdump", "--dump-resource-usage", cubin))
    return {"registers": int(found[0]), "spilled_bytes": int(found[1]) + int(found[2])}


def instructions(cubin: bytes) -> int:
    """Instructions of a thread for one block: those of the longest loop, or all where there is none."""
    number, labels, loops = 0, {}, []
    line = re.compile(r"(\.L_x_\d+):|\s+/\*\w{4,}\*/\s+(?:@!?U?P\w+ )?\s*([A-Z]\w*)(.*)")
    for match in filter(None, map(line.match, told_by("nvdisasm", "--print-code", cubin).splitlines())):
        label, name, operands = match.groups()
        if label:
            labels[label] = number
        elif name != "NOP":
            number += 1
            loops += [number - labels[target] for target in re.findall(r"\.L_x_\d+", operands) if target in labels]
    # The end of a kernel is a jump to itself.
    return max((loop for loop in loops if loop > 1), default=number)


def main() -> None:
    """Compile the plainest and the fullest variant for each dtype."""
    shared = {"targets": "*i64", "inverse_temperatures": "*fp32"}
    found = {}
    for dtype in ("bf16", "fp16", "fp32"):
        read = shared | {"logits": f"*{dtype}", "statistics": "*fp32"}
        written = shared | {"logits": f"*{dtype}", "grad_logits": f"*{dtype}"}
        written |= dict.fromkeys(("maxima", "constants", "slopes", "at_targets"), "*fp32")
        for is_full in (False, True):
            constants = {"LOWEST_SHIFT": LOWEST_SHIFT, "NATS_PER_BIT": NATS_PER_BIT, "IS_BY_ROW": is_full}
            forward_constants = {
                "LOWEST": torch.finfo(torch.float32).min,
                "HAS_SQUARES": is_full,
                "BLOCK": forward.BLOCK,
                "RUN": forward.BYTES_AT_ONCE // (4 if dtype == "fp32" else 2),
            }
            found[f"forward {dtype} {is_full}"] = facts_of(
                forward.reduce_row,
                read,
                constants | forward_constants,
                forward.NUM_WARPS,
            )
            found[f"backward {dtype} {is_full}"] = facts_of(
                backward.write_block,
                written,
                constants | {"HAS_SLOPE": is_full, "BLOCK": backward.BLOCK},
                backward.NUM_WARPS,
            )
    print(json.dumps(found))


if __name__ == "__main__":
    main()
