"""Compiles the kernels of the selection for an H100, which needs no GPU, and prints facts about them as JSON."""

from __future__ import annotations

import json

import triton
from triton.compiler import ASTSource

from megacov.ops.kernels import combine, extremes
from megacov.ops.kernels import covariance as cov
from megacov.ops.vocab_statistics import LOWEST_SHIFT
from megacov.selection.kernels import radix
from tests.support.kernel_builds import DIVISIBLE, H100, resources

TYPES = dict.fromkeys(("num_tokens", "num_values", "num_shards", "num_rows", "vocab_size"), "i32") | {
    "kept_mask": "*i1",
    "selected": "*i1",
    "read_list": "*i32",
    "written_list": "*i32",
    "token_ids": "*i64",
    "targets": "*i64",
    "inverse_temperature": "fp32",
}
FLOAT32 = ("values", "filter_values", "scores", "log_probs", "advantages", "found", "statistics", "results")
FLOAT32 += ("inverse_temperatures",)
INT64 = ("read_length", "written_length", "state", "counts")
TYPES |= dict.fromkeys(FLOAT32, "*fp32") | dict.fromkeys(INT64, "*i64")
TYPES |= dict.fromkeys(("partial_sums", "means"), "*fp64")
FIRST = {"KIND": 0, "SHIFT": 21, "FILTER_KIND": 0, "FILTER_SHIFT": 0, "HAS_FILTER": False, "HAS_LIST": False}
FIRST |= {"NUM_BINS": 2048, "BLOCK": radix.BLOCK}
SECOND = FIRST | {"SHIFT": 10, "FILTER_SHIFT": 21, "HAS_FILTER": True}
THIRD = SECOND | {"SHIFT": 0, "FILTER_SHIFT": 10, "HAS_LIST": True, "NUM_BINS": 1024}
TIES = THIRD | {"KIND": 2, "SHIFT": 53, "FILTER_SHIFT": 0, "NUM_BINS": 2048}
COMBINED = {"LOWEST_SHIFT": LOWEST_SHIFT, "HAS_SQUARES": True, "IS_BY_ROW": True, "BLOCK": combine.BLOCK}


def facts_of(kernel, constants: dict[str, object], num_warps: int, **types: str) -> dict[str, int]:
    """Registers and spilled bytes of one variant."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else (TYPES | types)[name] for name in names}
    source = ASTSource(
        kernel,
        signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(index,): DIVISIBLE for index, name in enumerate(names) if signature[name].startswith("*")},
    )
    return resources(triton.compile(source, target=H100, options={"num_warps": num_warps}).asm["cubin"])


def main() -> None:
    """Compile every kernel, and that which counts digits in each of its uses."""
    warps, ids = radix.NUM_WARPS, {"values": "*i64"}
    found = {
        "first digit": facts_of(radix.count_digits, FIRST, warps),
        "second digit": facts_of(radix.count_digits, SECOND, warps),
        "third digit": facts_of(radix.count_digits, THIRD, warps),
        "first digit of ties": facts_of(radix.count_digits, TIES, warps, **ids),
        "find": facts_of(radix.find_digit, {"WIDTH": 11, "IS_FIRST": False, "NUM_BINS": 2048}, warps, found="*i64"),
        "last": facts_of(radix.select_last, {"KIND": 2, "BLOCK": radix.BLOCK}, warps, **ids),
        "means": facts_of(cov.add_parts, {"BLOCK": cov.BLOCK}, cov.NUM_WARPS),
        "covariance": facts_of(cov.multiply_centred, {"BLOCK": cov.BLOCK}, cov.NUM_WARPS),
        "extremes": facts_of(extremes.reduce_extremes, {"BLOCK": extremes.BLOCK}, extremes.NUM_WARPS, mask="*i1"),
        "combine": facts_of(combine.combine_block, COMBINED, combine.NUM_WARPS),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
