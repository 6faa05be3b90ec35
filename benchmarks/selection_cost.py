"""Training phase of KL-Cov over GRPO's, by where the selection's current log-probs come from.

The training phase is what a step does between its rollout and its metrics: old log-probs, selection and update, with
four optimizer steps of at least eight micro-batches. GRPO and KL-Cov with a pass, with deferred backwards and with
corrected gradients take turns on the same ranks, each with a policy of its own: the tiny policy, or for two virtual
stages or long responses one of four such layers. A step's CPU time is that of all ranks together, and its wall time
that of the slowest.
Run: python -m benchmarks.selection_cost [--rounds 20] [--response 400]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import quantiles

import torch

from megacov.launch.memory import keep_freed_memory
from megacov.trainer.clock import StepClock
from megacov.trainer.step import run_updates
from megacov.types import RolloutBatch
from tests.support.policies import (
    FLOAT32,
    GRPO,
    KL_COV,
    TINY_POLICY,
    laid_out_ranks,
    make_policy,
    prepare_mini_batches,
    step_settings,
)
from tests.support.run_ranks import run_cases

NUM_UPDATES, MICRO_BATCHES, SAMPLES = 4, 8, 128
PROMPT, RESPONSE = 12, 40
WAYS = {"pass": "a pass", "deferred": "deferred", "correction": "corrected"}
SELECTING = replace(KL_COV, selection_hyperparameters={"ratio": 2e-3})
ALGORITHMS = {
    "GRPO": GRPO,
    "pass": SELECTING,
    "deferred": replace(SELECTING, defers=True),
    "correction": replace(SELECTING, corrects=True),
}
LAYOUTS = {"one rank": (1, 1), "PP 2": (2, 1), "PP 2 x VPP 2": (2, 2)}
Times = dict[str, list[tuple[float, float]]]


def make_batch(seed: int, longest: int) -> RolloutBatch:
    """Responses of random tokens and lengths, in groups of eight."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(longest // 2, longest + 1, (SAMPLES,), generator=generator)
    tokens = torch.randint(4, 14, (SAMPLES, PROMPT + longest), generator=generator)
    tokens[torch.arange(PROMPT + longest) >= PROMPT + lengths[:, None]] = 0
    return RolloutBatch(
        tokens=tokens,
        prompt_lengths=torch.full((SAMPLES,), PROMPT),
        response_lengths=lengths,
        loss_mask=torch.arange(longest) < lengths[:, None],
        rollout_log_probs=-torch.rand(SAMPLES, longest, generator=generator),
        group_ids=torch.arange(SAMPLES) // 8,
        rewards=torch.randint(0, 2, (SAMPLES,), generator=generator).float(),
        max_response_length=longest,
    )


def measure(folder: str, pipeline: int, virtual: int, recompute: str, rounds: int, response: int) -> Times:
    """Wall and CPU seconds of each training phase on this rank, by algorithm; a first round is not counted.

    Under "share", twice that of positions that a correction went through.
    """
    torch.set_num_threads(1)
    keep_freed_memory()  # as a rank does
    model = replace(FLOAT32, recompute=recompute, virtual_pipeline=virtual)
    found: Times = {name: [] for name in (*ALGORITHMS, "share")}
    with laid_out_ranks(1, pipeline, virtual_pipeline=virtual) as groups:
        policies = {name: make_policy(groups, path=Path(folder), model=model) for name in ALGORITHMS}
        tokens = SAMPLES // NUM_UPDATES // MICRO_BATCHES * (PROMPT + response // 2)
        for i in range(rounds + 1):
            batch = make_batch(i, response)
            for name, algorithm in ALGORITHMS.items():
                policy = policies[name]
                settings = step_settings(policy, num_updates=NUM_UPDATES, micro_batch_tokens=tokens)
                wall, cpu = time.perf_counter(), time.process_time()
                updates = prepare_mini_batches(policy, batch, algorithm, settings)
                outcomes = run_updates(policy, updates, algorithm, clock=StepClock())
                assert all(len(update.micro_batches) >= MICRO_BATCHES for update in updates)
                if i > 0:
                    found[name].append((time.perf_counter() - wall, time.process_time() - cpu))
                    shares = [one.corrected_share for one in outcomes if one.corrected_share is not None]
                    found["share"] += [(share, share) for share in shares]
    return found


def deepened(folder: Path, *, num_layers: int, max_positions: int) -> Path:
    """The tiny policy's shape with so many layers and positions, and random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    shape = json.loads((TINY_POLICY / "config.json").read_text())
    shape |= {"num_hidden_layers": num_layers, "layer_types": ["full_attention"] * num_layers}
    shape["max_position_embeddings"] = max_positions
    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**shape)).save_pretrained(folder)
    return folder


def ratios(by_rank: list[Times], name: str, other: str, combined: Callable[[list[tuple[float, float]]], float]) -> str:
    """Quartiles of an algorithm's time over that of another in the same round."""
    steps = {
        one: [combined(list(ranks)) for ranks in zip(*(rank[one] for rank in by_rank), strict=True)]
        for one in ALGORITHMS
    }
    low, middle, high = quantiles([a / b for a, b in zip(steps[name], steps[other], strict=True)], n=4)
    return f"{middle:.3f} ({low:.3f} to {high:.3f})"


def _cpu(ranks: list[tuple[float, float]]) -> float:
    return sum(one for _, one in ranks)


def _wall(ranks: list[tuple[float, float]]) -> float:
    return max(one for one, _ in ranks)


def main() -> None:
    """Print a table in Markdown: medians of the ratios of all rounds, with quartiles."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--response", type=int, default=RESPONSE, help="tokens of the longest response")
    options = parser.parse_args()
    rounds, response = options.rounds, options.response
    columns = ["layout", "recomputed", "log-probs from"]
    columns += [f"{kind} time over {other}" for other in ("GRPO's", "a pass's") for kind in ("CPU", "wall")]
    print(f"| {' | '.join(columns)} | corrected |\n{'|---' * (len(columns) + 1)}|")
    with tempfile.TemporaryDirectory() as folder:
        deep = deepened(Path(folder), num_layers=4, max_positions=PROMPT + response)
        for layout in options.layouts:
            pipeline, virtual = LAYOUTS[layout]
            path = deep if virtual > 1 or response > RESPONSE else TINY_POLICY
            cases = [(str(path), pipeline, virtual, recompute, rounds, response) for recompute in ("none", "full")]
            found = run_cases(measure, cases, world_size=pipeline, deadline_s=3600)
            for recomputed, by_rank in zip(("nothing", "layers"), found, strict=True):
                shares = [share for share, _ in by_rank[0]["share"]]
                for name, source in WAYS.items():
                    cells = [
                        ratios(by_rank, name, other, combined)
                        for other in ("GRPO", "pass")
                        for combined in (_cpu, _wall)
                    ]
                    corrected = f"{sum(shares) / len(shares):.1%}" if name == "correction" else ""
                    print(f"| {layout} | {recomputed} | {source} | {' | '.join(cells)} | {corrected} |", flush=True)


if __name__ == "__main__":
    main()
