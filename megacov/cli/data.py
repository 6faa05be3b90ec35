"""`megacov data`: what is in files of prompts, before a run depends on them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from megacov.errors import DataError

if TYPE_CHECKING:
    from megacov.config import RunConfig
    from megacov.data.encoding import Encoder
    from megacov.data.overlap import EvaluationSet
    from megacov.data.survey import Survey

_NUM_EXAMPLES = 5
_WIDTH = 100


def data(
    source: Annotated[str, typer.Argument(metavar="FILE|CONFIG", help="Prompts, or the YAML file of a run.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change, as in data.prompt_field=question.")
    ] = None,
    model: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Model whose tokenizer measures lengths.", show_default=False)
    ] = None,
    against: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Evaluation problems to look for; may be repeated.")
    ] = None,
    most: Annotated[int, typer.Option(min=0, help="Most broken rows to show.")] = 20,
) -> None:
    """Show rows, lengths, broken and repeated rows of prompts, evaluation problems in them, and ten prompts.

    Exits with 3 if a row is broken.
    """
    from megacov.data.survey import read_evaluation, survey
    from megacov.trainer.prompts import columns_of

    config = _config_of(source, overrides or [], model)
    encoder = _encoder_of(config, is_needed=model is not None)
    is_whole = True
    for each in config.sources:
        columns = columns_of(each)
        sets = [read_evaluation(path, columns) for path in against or []]
        found = survey(each.path, columns, encoder=encoder, against=sets, most=most)
        for line in _lines(config, ", ".join(each.path), found, sets):
            print(line)
        is_whole = is_whole and found.num_good > 0 and not found.num_broken
    if encoder is not None:
        encoder.print_remarks()
    if not is_whole:
        raise typer.Exit(DataError.exit_code)


def _config_of(source: str, overrides: list[str], model: Path | None) -> RunConfig:
    from megacov.cli.model_source import with_local_model
    from megacov.config import load_config, make_data_config, write_override

    named = [] if model is None else [write_override("model.path", str(model))]
    if not source.endswith((".yaml", ".yml")):
        return make_data_config(source, [*overrides, *named])
    config = load_config(source, [*overrides, *named])
    try:
        return with_local_model(config, downloads=False)[0]
    except DataError:  # a model that is not here has no tokenizer, and lengths are not measured
        return config


def _encoder_of(config: RunConfig, *, is_needed: bool) -> Encoder | None:
    """Encodes prompts as the run would; None where the model is not on this machine and nobody asked for it."""
    from megacov.data import load_tokenizer
    from megacov.data.encoding import Encoder
    from megacov.plan import read_model_sizes

    about = config.model.path / "config.json"
    if not about.is_file() and not is_needed:
        return None
    if not about.is_file():
        raise DataError(f"--model is {config.model.path}, which is not a model folder: it has no config.json.")
    tokenizer = load_tokenizer(config.model.path, vocab_size=read_model_sizes(about).vocab_size)
    data = config.data
    return Encoder(tokenizer, chat_template=data.chat_template, arguments=data.chat_template_kwargs)


def _lines(config: RunConfig, name: str, found: Survey, sets: list[EvaluationSet]) -> Iterator[str]:
    yield name
    yield f"  rows        {found.num_good + found.num_broken}, {found.num_broken} of them broken"
    yield from _listed(found.faults, found.num_broken)
    other = f", {found.num_contradictions} of them with another answer" if found.num_contradictions else ""
    yield f"  repeated    {found.num_repeats} prompts stand in the data before{other}"
    yield from _listed(found.repeats[:_NUM_EXAMPLES], found.num_repeats)
    yield from _length_lines(found, config.data.max_prompt_length)
    for each in sets:
        yield from _overlap_lines(each)
    for shown in found.shown:
        yield f"--- {shown.place}, answer {shown.answer!r}"
        yield shown.text


def _length_lines(found: Survey, limit: int) -> Iterator[str]:
    from megacov.data.survey import quantile

    if not found.lengths:
        yield "  tokens      not measured: give --model, or a configuration whose model is on this machine"
        return
    parts = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
    yield "  tokens      " + ", ".join(f"{word} {quantile(found.lengths, share)}" for word, share in parts.items())
    num_too_long = sum(length > limit for length in found.lengths)
    yield f"  too long    {num_too_long} have more than data.max_prompt_length = {limit} tokens"


def _overlap_lines(each: EvaluationSet) -> Iterator[str]:
    yield f"  against {each.name}, {len(each.problems)} problems"
    yield f"    exact     {len(each.exact)} problems stand in the data"
    for problem, place in list(each.exact.items())[:_NUM_EXAMPLES]:
        text = " ".join(each.problems[problem].split())
        yield f"      {place} is problem {problem + 1}: {text[:_WIDTH]}{'...' if len(text) > _WIDTH else ''}"
    yield f"    13 words  {len(each.shared)} problems share 13 words in a row with the data"
    for problem, (place, words) in list(each.shared.items())[:_NUM_EXAMPLES]:
        yield f"      {place} and problem {problem + 1}: {words}"


def _listed(sentences: list[str], num_all: int) -> Iterator[str]:
    yield from (f"    {sentence}" for sentence in sentences)
    if 0 < len(sentences) < num_all:
        yield f"    and {num_all - len(sentences)} more"
