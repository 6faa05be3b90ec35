"""`megacov predict`: the entropy law of runs, what it predicts, and whether to believe it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from megacov.errors import DataError, LawError

if TYPE_CHECKING:
    from megacov.monitor.entropy_law.law import EntropyLaw
    from megacov.monitor.entropy_law.sizes import SizePrediction
    from megacov.monitor.entropy_law.sources import Source


def predict(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN|EVENTS|CSV...",
            help="Run folders, folders of TensorBoard events (verl's, slime's, any), or CSV files.",
            show_default=False,
        ),
    ],
    entropy: Annotated[
        str | None, typer.Option(metavar="TAG", help="Entropy, in training or evaluation; default: a known tag.")
    ] = None,
    reward: Annotated[
        str | None, typer.Option(metavar="TAG", help="Reward, or an evaluation score; default: a known tag.")
    ] = None,
    step: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of the steps in a CSV file; default: a known name.")
    ] = None,
    early: Annotated[float, typer.Option(help="Share of the steps from which the others are predicted.")] = 0.15,
    given: Annotated[
        list[str] | None,
        typer.Option(metavar="CONDITION", help="True of these runs: intervention, off-policy or changing-data."),
    ] = None,
    sizes: Annotated[
        str | None, typer.Option(metavar="N,N,...", help="Model size of each run, in billions of parameters.")
    ] = None,
    predict_size: Annotated[
        float | None, typer.Option(metavar="N", help="Size to predict from --sizes; default: the largest of them.")
    ] = None,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Where to write a picture (.png).")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Fit R = -a exp(H) + b to runs: a, b, ceiling, intervals, early prediction, and whether the law holds."""
    from megacov.monitor.entropy_law.sources import read_source
    from megacov.monitor.entropy_law.text import describe, describe_sizes
    from megacov.monitor.visible_text import visible

    billions = _parse_sizes(sizes, len(runs), predict_size)
    sources = [read_source(path, entropy_tag=entropy, reward_tag=reward, step_column=step) for path in runs]
    fits = _fit(sources, early=early, given=given or [])
    if as_json:
        over_sizes = _over_sizes(fits, billions, predict_size) if billions else None
        print(json.dumps(_document(fits, over_sizes), indent=1))
    else:
        for source, law in fits:
            print("\n".join(map(visible, describe(source, law, early=early))))
        if billions:
            print("\n".join(describe_sizes(_over_sizes(fits, billions, predict_size))))
    if output is not None:
        from megacov.monitor.entropy_law.figure import write_figure

        write_figure(fits, output)
        if not as_json:
            print(f"Picture: {output}")
    _refuse(fits)


def _fit(sources: Sequence[Source], *, early: float, given: Sequence[str]) -> list[tuple[Source, EntropyLaw]]:
    from megacov.monitor.entropy_law.conditions import GIVEN
    from megacov.monitor.entropy_law.law import fit

    unknown = [name for name in given if name not in GIVEN]
    if unknown:
        raise DataError(f"--given {unknown[0]} is not a condition: give one of {', '.join(GIVEN)}.")
    stated = [GIVEN[name] for name in given]
    fits = []
    for source in sources:
        is_known = source.conditions is not None or stated
        conditions = [*(source.conditions or ()), *stated] if is_known else None
        curve = source.curve
        law = fit(curve.entropies, curve.rewards, early=early, conditions=conditions, best_reward=curve.best_reward)
        fits.append((source, law))
    return fits


def _parse_sizes(text: str | None, num_runs: int, predict_size: float | None) -> list[float]:
    if text is None:
        if predict_size is not None:
            raise DataError("--predict-size needs the sizes of the runs: give --sizes too.")
        return []
    try:
        sizes = [float(part) for part in text.split(",")]
    except ValueError:
        raise DataError(f"--sizes {text} is not a list of numbers: write it as in 0.5,1.5,7.") from None
    if len(sizes) != num_runs:
        raise DataError(f"--sizes has {len(sizes)} numbers and there are {num_runs} runs: give one for each run.")
    return sizes


def _over_sizes(
    fits: Sequence[tuple[Source, EntropyLaw]], billions: Sequence[float], predict_size: float | None
) -> SizePrediction:
    """The line over the sizes of the runs whose law is not refused."""
    from megacov.monitor.entropy_law import sizes

    sized = [
        sizes.SizedLaw(size, law.a, law.b)
        for size, (_, law) in zip(billions, fits, strict=True)
        if law.verdict.outcome != "refused"
    ]
    return sizes.predict_size(sized, max(billions) if predict_size is None else predict_size)


def _document(fits: Sequence[tuple[Source, EntropyLaw]], over_sizes: SizePrediction | None) -> dict[str, Any]:
    from dataclasses import asdict

    from megacov.monitor.entropy_law.text import to_json

    return {
        "runs": [to_json(source, law) for source, law in fits],
        "sizes": None if over_sizes is None else asdict(over_sizes),
    }


def _refuse(fits: Sequence[tuple[Source, EntropyLaw]]) -> None:
    refused = [source.name for source, law in fits if law.verdict.outcome == "refused"]
    if refused:
        raise LawError(
            f"The entropy law is refused for {len(refused)} of {len(fits)} runs ({', '.join(refused)}): do not use its "
            "numbers; the verdict above names the reason."
        )
