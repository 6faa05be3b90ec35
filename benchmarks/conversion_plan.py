"""How much memory each rank needs while it loads a model, from its config.json alone; nothing is allocated.

Two configurations to try it on:
python -m benchmarks.conversion_plan yaml_configs/models/qwen2.5-32b --tensor 8 --pipeline 2
python -m benchmarks.conversion_plan benchmarks/models/qwen3-30b-a3b --expert 8
"""

from __future__ import annotations

import argparse
import resource
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

from benchmarks.loading_plan import RankPlan, plan_loading
from megacov.errors import MegacovError
from megacov.megatron.model import DTYPES
from megacov.megatron.model_shape import check_expert_split, check_split, read_model_shape

GIB = 1 << 30
HEADINGS = ("stage", "tensor ranks", "layers", "parameters", "weights", "gradients", "reading", "peak", "largest")


def make_plan(options: argparse.Namespace) -> list[RankPlan]:
    """The plan, or an error if the model does not allow this layout."""
    shape = read_model_shape(options.model)
    check_split(shape, tensor=options.tensor, pipeline=options.pipeline, virtual_pipeline=options.virtual_pipeline)
    check_expert_split(shape, expert=options.expert, tensor=options.tensor, sequence=True)
    return plan_loading(
        shape,
        tensor=options.tensor,
        pipeline=options.pipeline,
        virtual_pipeline=options.virtual_pipeline,
        expert=options.expert,
        vocab_divisible_by=options.vocab_divisible_by,
        dtype=DTYPES[options.dtype],
    )


def rows(plans: Sequence[RankPlan]) -> list[tuple[str, ...]]:
    """One row for each run of ranks that hold the same."""
    found = []
    for plan, alike in groupby(plans, key=lambda plan: replace(plan, tensor_rank=0)):
        ranks = [one.tensor_rank for one in alike]
        held = (plan.weight_bytes, plan.gradient_bytes, plan.reading_bytes, plan.peak_bytes)
        found.append(
            (
                str(plan.stage),
                f"{ranks[0]}-{ranks[-1]}" if len(ranks) > 1 else str(ranks[0]),
                str(plan.num_layers),
                f"{plan.num_parameters:,}",
                *(f"{num_bytes / GIB:.2f} GiB" for num_bytes in held),
                plan.largest,
            )
        )
    return found


def main() -> None:
    """Print the plan, and how much memory this process needed to make it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder with a config.json; weights are not needed")
    for name in ("tensor", "pipeline", "virtual-pipeline", "expert"):
        parser.add_argument(f"--{name}", type=int, default=1)
    parser.add_argument("--vocab-divisible-by", type=int, default=128)
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    options = parser.parse_args()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        plans = make_plan(options)
    except MegacovError as error:
        print(f"conversion_plan: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    table = [HEADINGS, *rows(plans)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"this process grew by {grown / 1024:.0f} MiB")


if __name__ == "__main__":
    main()
