"""Step time by phase of Qwen2.5-32B on 32 to 1024 H100: a simulation on paper, in which nothing is measured.

Prints the tables of docs/scaling.md. Run: python -m benchmarks.scaling [--figure docs/figures/scaling.png]
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.scaling_assumptions import Assumptions, described
from benchmarks.scaling_figure import write_figure
from benchmarks.scaling_published import compare
from benchmarks.scaling_selection import HEADING, selection_rows
from benchmarks.scaling_step import Mode, Run, Step, colocated_step, read_run, shared_steps

RUN = Path(__file__).parents[1] / "yaml_configs" / "runs" / "qwen2.5_32b_kl_cov_4n.yaml"
SIZES = (32, 64, 128, 256, 512, 1024)
_TRAINERS = (16, 32, 64, 128, 256, 512)
_IN_UPDATE = ("selection", "bubble", "gradients, parameters", "optimizer")
_ENOUGH = 0.5
"""Parallel efficiency below which a phase counts as having stopped scaling."""


def phases(step: Step) -> dict[str, float]:
    """Seconds of the successive phases of a step by name; they add up to the step."""
    trainer = step.trainer
    return {
        "rollout waited for": step.waited,
        "weight sync": step.sync,
        "old log-probs": trainer.log_probs,
        "selection": trainer.selection,
        "entropy head": trainer.head,
        "update": trainer.update,
        "bubble": trainer.bubble,
        "gradients, parameters": trainer.data_parallel,
        "optimizer": trainer.optimizer,
        "checkpoint": trainer.checkpoint,
    }


def strong(run: Run) -> dict[Mode, list[Step]]:
    """Steps with the same batch on every size: by mode, in the order of SIZES."""
    shared = [shared_steps(run, gpus) for gpus in SIZES]
    return {
        "in turn": [steps["in turn"] for steps in shared],
        "one step off": [steps["one step off"] for steps in shared],
        "colocated": [colocated_step(run, gpus) for gpus in SIZES],
    }


def weak(run: Run) -> dict[Mode, list[Step]]:
    """Steps whose prompts grow with the GPUs, in as many optimizer steps: by mode, in the order of SIZES."""
    shared = [shared_steps(run.with_prompts(gpus // SIZES[0]), gpus) for gpus in SIZES]
    modes: tuple[Mode, ...] = ("in turn", "one step off")
    return {mode: [steps[mode] for steps in shared] for mode in modes}


def efficiencies(steps: Sequence[Step]) -> dict[str, list[float]]:
    """GPU-seconds of a phase on the smallest size divided by those on each size, counting all GPUs of the job.

    Args:
        steps: steps of one mode, in the order of SIZES.

    Returns:
        Efficiencies by phase. Phases that cost nothing on one of the sizes are part of the update, and count with it.
    """
    by_size = []
    for step in steps:
        seconds = phases(step)
        seconds["update"] += sum(seconds.pop(name) for name in _IN_UPDATE)
        by_size.append({**seconds, "step": step.seconds})
    first = by_size[0]
    return {
        name: [
            first[name] * steps[0].gpus / (seconds[name] * step.gpus) if seconds[name] else 1.0
            for step, seconds in zip(steps, by_size, strict=True)
        ]
        for name in first
    }


def first_to_stop(steps: Sequence[Step]) -> list[str]:
    """Describe which phases stop scaling.

    Args:
        steps: steps in turn, in the order of SIZES.

    Returns:
        A sentence for each phase that falls below half of its efficiency, in order, and one about the lost time.
    """
    shares = efficiencies(steps)
    sentences: list[str] = []
    gone: set[str] = set()
    for place, step in enumerate(steps):
        fallen = sorted(
            (values[place], name)
            for name, values in shares.items()
            if values[place] < _ENOUGH and name not in {*gone, "step"}
        )
        for share, name in fallen:
            part = phases(step)[name] / step.seconds
            sentences.append(
                f"- on {step.gpus} GPUs: {name}, at {share:.0%} of its efficiency and {part:.1%} of the step"
            )
            gone.add(name)
    last, first = phases(steps[-1]), phases(steps[0])
    lost = {name: last[name] - first[name] * steps[0].gpus / steps[-1].gpus for name in last}
    most = max(lost, key=lambda name: lost[name])
    sentences.append(
        f"- a step on {steps[-1].gpus} GPUs takes {sum(lost.values()):.1f} s more than a perfect "
        f"{steps[0].seconds * steps[0].gpus / steps[-1].gpus:.1f} s, and {lost[most]:.1f} s of that are {most}"
    )
    return sentences


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Lines of a table in Markdown."""
    yield "| " + " | ".join(heading) + " |"
    yield "|" + "---|" * len(heading)
    yield from ("| " + " | ".join(row) + " |" for row in rows)


def shape(step: Step) -> str:
    """A trainer's layout in a few letters."""
    training, layout = step.training, step.training.layout
    context = f" CP {layout.context}" if layout.context > 1 else ""
    again = ", recomputed" if training.recompute == "full" else ""
    return f"TP {layout.tensor} PP {layout.pipeline}{context} DP {layout.data}{again}"


def sharing_rows(steps: Sequence[Step]) -> Iterator[Sequence[str]]:
    """Rows with the GPUs of trainer and servers, and their waiting times."""
    for step in steps:
        servers, rollout = step.servers, step.rollout
        yield (
            str(step.gpus),
            step.mode,
            f"{step.trainer_gpus}: {shape(step)}",
            f"{servers.number} x {servers.tensor}",
            f"{rollout.seconds:.1f}",
            f"{step.trainer.total:.1f}",
            f"{step.seconds:.1f}",
            f"{step.tokens_per_gpu:.0f}",
            f"{step.trainer_idle:.0%}",
            f"{step.server_idle:.0%}",
        )


def phase_table(steps: Sequence[Step]) -> Iterator[str]:
    """Seconds by phase."""
    heading = ["GPUs", *phases(steps[0]), "step"]
    rows = [
        [str(step.gpus), *(f"{seconds:.2f}" for seconds in phases(step).values()), f"{step.seconds:.1f}"]
        for step in steps
    ]
    return table(heading, rows)


def weak_rows(by_mode: Mapping[Mode, Sequence[Step]]) -> Iterator[Sequence[str]]:
    """Step, throughput and efficiency of both modes."""
    for turn, off in zip(by_mode["in turn"], by_mode["one step off"], strict=True):
        cells = [str(turn.gpus), f"{turn.tokens / 1e6:.0f} M"]
        for step, first in ((turn, by_mode["in turn"][0]), (off, by_mode["one step off"][0])):
            cells += [f"{step.seconds:.1f}", f"{step.sync:.1f}", f"{step.tokens_per_gpu:.0f}"]
            cells += [f"{step.tokens_per_gpu / first.tokens_per_gpu:.0%}"]
        yield cells


def strong_report(run: Run, steps: Mapping[Mode, Sequence[Step]]) -> str:
    """The part of docs/scaling.md about a fixed batch, from the steps of `strong`."""
    batch, responses = run.plan.batch, run.responses
    cut = sum(1 for n in responses if n >= batch.max_response_length) / len(responses)
    lines = [
        f"{batch.prompts} prompts x {batch.samples_per_prompt} samples x {sum(responses) / len(responses):.0f} tokens "
        f"on average and {batch.max_response_length} at most, {batch.updates} optimizer steps; "
        f"{cut:.0%} of the responses are cut off, the median is {responses[len(responses) // 2]}.",
        "",
    ]
    heading = ("GPUs", "mode", "trainer", "servers", "rollout", "training", "step", "tokens/s/GPU")
    every = [step for same_size in zip(*steps.values(), strict=True) for step in same_size]
    lines += [*table((*heading, "trainer waits", "servers wait"), list(sharing_rows(every))), ""]
    lines += [*phase_table(steps["in turn"]), "", *phase_table(steps["one step off"]), ""]
    shares = efficiencies(steps["in turn"])
    rows = [[name, *(f"{value:.0%}" for value in values)] for name, values in shares.items()]
    lines += [*table(("efficiency on", *map(str, SIZES)), rows), "", *first_to_stop(steps["in turn"])]
    return "\n".join(lines)


def selection_report(run: Run) -> str:
    """The part of docs/scaling.md about the price of an exact selection."""
    return "\n".join(table(HEADING, list(selection_rows(run, _TRAINERS))))


def weak_report(steps: Mapping[Mode, Sequence[Step]]) -> str:
    """The part of docs/scaling.md about a batch that grows, from the steps of `weak`."""
    heading = ("GPUs", "tokens", "in turn", "sync", "tokens/s/GPU", "efficiency")
    return "\n".join(table((*heading, "one step off", *heading[3:]), list(weak_rows(steps))))


def assumptions_report(given: Assumptions) -> str:
    """The parts of docs/scaling.md about published times and about assumptions."""
    compared = [
        (one.what, f"{one.published:g} {one.unit}".strip(), f"{one.simulated:.4g}", f"{one.ratio:.2f}", one.role)
        for one in compare(given)
    ]
    groups = (given.gpu, given.shares, given.costs, given.lengths)
    assumed = [
        (f"`{name}`", f"{value:.4g}", unit, source)
        for group in groups
        for name, value, unit, source in described(group)
    ]
    lines = [*table(("set-up", "published", "simulated", "ratio", ""), compared), ""]
    return "\n".join([*lines, *table(("assumption", "value", "unit", "source"), assumed)])


def main() -> None:
    """Print the tables, and with --figure also draw the phases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--figure", type=Path, help="where to write a picture, ending in .png")
    options = parser.parse_args()
    run = read_run(RUN, Assumptions())
    steps = strong(run)
    reports = (strong_report(run, steps), selection_report(run), weak_report(weak(run)), assumptions_report(run.given))
    print(*reports, sep="\n\n")
    if options.figure is not None:
        drawn: tuple[Mode, ...] = ("in turn", "one step off")
        stacked = {str(mode): {step.gpus: phases(step) for step in steps[mode]} for mode in drawn}
        write_figure(stacked, path=options.figure)


if __name__ == "__main__":
    main()
