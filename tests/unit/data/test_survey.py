"""`megacov data`: rows, faults, repeats, lengths, problems of evaluations, and ten prompts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from typer.testing import CliRunner

from megacov.cli.main import app
from megacov.data.columns import Columns
from megacov.data.overlap import EvaluationSet, ngrams, words_of
from megacov.data.survey import NUM_SHOWN, quantile, read_evaluation, survey
from megacov.errors import ConfigError, DataError, MegacovError

TINY = "yaml_configs/runs/tiny_grpo.yaml"
LONG = "a b c d e f g h i j k l m"  # 13 words


def written(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


def row(prompt: object, answer: object = "1") -> dict[str, object]:
    return {"prompt": prompt, "answer": answer}


def test_words_and_their_runs() -> None:
    assert words_of("Find $x_1^2$,\n\tif X=3!") == ["find", "x_1", "2", "if", "x", "3"]
    assert list(ngrams(list("abcd"), 3)) == ["a b c", "b c d"]
    assert list(ngrams(list("ab"), 3)) == []


def test_problems_are_found_word_for_word_or_by_13_words() -> None:
    problems = ["What is 2 + 2?", f"{LONG} n", LONG.replace("m", "z"), f"q {LONG}", "WHAT is  2+2"]
    found = EvaluationSet("a.jsonl", problems)
    for place, text in (("line 1", "what, is 2 2"), ("line 2", f"x {LONG.upper()} y"), ("line 3", f"{LONG} n")):
        found.look_for(words_of(text), place)
    assert found.exact == {0: "line 1", 4: "line 1", 1: "line 3"}
    assert found.shared == {1: ("line 2", LONG), 3: ("line 2", LONG)}


def test_faults_repeats_and_the_prompts_shown(tmp_path: Path) -> None:
    rows = [row("1="), "{", row("1=", "2"), {"prompt": "2="}, row("1="), row(3), *(row(f"{k}=") for k in range(50, 90))]
    path = written(tmp_path / "a.jsonl", rows)
    found = survey(path, Columns(), encoder=None, against=(), most=2)
    assert (found.num_good, found.num_broken) == (43, 3)
    assert [each.partition(" is ")[0].partition(" has ")[0] for each in found.faults] == [
        f"{path}, line 2",
        f"{path}, line 4",
    ]
    assert (found.num_repeats, found.num_contradictions) == (2, 1)
    assert found.repeats[0] == f"{path}, line 3 repeats an earlier prompt, with another answer."
    assert len(found.shown) == len({each.place for each in found.shown}) == NUM_SHOWN
    assert found.shown == survey(path, Columns(), encoder=None, against=(), most=0).shown
    few = survey(written(tmp_path / "b.jsonl", [row("1=", 5)]), Columns(), encoder=None, against=(), most=0)
    assert [(each.text, each.answer) for each in few.shown] == [("1=", "5")]


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_a_quantile_is_the_smallest_value_that_enough_do_not_exceed(share: float) -> None:
    for values in ([3], [5, 1, 4], list(range(20)), [2, 2, 2, 9]):
        enough = max(math.ceil(round(share * len(values), 6)), 1)
        expected = min(each for each in values if sum(other <= each for other in values) >= enough)
        assert quantile(values, share) == expected


def test_an_evaluation_is_read_by_the_field_it_has(tmp_path: Path) -> None:
    path = written(tmp_path / "e.jsonl", [{"problem": "a", "question": "b"}, {"question": "c"}, {"prompt": "d"}])
    assert read_evaluation(str(path), Columns("text")).problems == ["a", "c", "d"]
    assert read_evaluation(str(path), Columns("question", "answer")).problems == ["b", "c", "d"]
    with pytest.raises(DataError, match="line 1 has no field 'text' but id; set data.prompt_field"):
        read_evaluation(str(written(tmp_path / "e.jsonl", [{"id": 1}])), Columns("text"))
    with pytest.raises(DataError, match="needs a file of problems"):
        read_evaluation(str(written(tmp_path / "e.jsonl", [])), Columns())


def shown(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["data", *arguments])
    if isinstance(result.exception, MegacovError):
        raise result.exception
    return result.exit_code, result.output


def test_the_command_shows_a_configuration_with_lengths() -> None:
    code, text = shown(TINY, "data.max_prompt_length=3")
    assert code == 0
    assert "rows        190, 0 of them broken" in text
    assert "tokens      min 3, median 4, p95 4, max 4" in text
    assert "too long    100 have more than data.max_prompt_length = 3 tokens" in text
    assert text.count("\n---") == NUM_SHOWN


def test_the_command_shows_a_file_and_what_is_broken_in_it(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl", ["[", *({"question": f"{k}= {LONG}", "answer": "#### 1,000"} for k in range(3)), "{}"]
    )
    problems = written(tmp_path / "e.jsonl", [{"problem": f"{LONG} !"}, {"problem": f"0={LONG}"}, {"problem": "no"}])
    columns = ("data.prompt_field=question", "data.answer_format=gsm8k")
    code, text = shown(str(path), *columns, "--against", str(problems), "--most", "1")
    assert code == DataError.exit_code
    for words in (
        "rows        5, 2 of them broken",
        f"    {path}, line 1 is not JSON",
        "    and 1 more",
        "not measured: give --model",
        f"against {problems}, 3 problems",
        "exact     1 problems stand in the data",
        f"{path}, line 2 is problem 2: 0={LONG}",
        "13 words  2 problems share 13 words",
        f"--- {path}, line 2, answer '1000'",
    ):
        assert words in text
    code, text = shown(str(path), *columns, "data.chat_template=false", "--model", "examples/tiny_policy")
    assert "tokens      min " in text
    with pytest.raises(DataError, match="--model is nowhere, which is not a model folder"):
        shown(str(path), "--model", "nowhere")
    with pytest.raises(ConfigError, match="data.prompt_feild is not a setting: did you mean data.prompt_field"):
        shown(str(path), "data.prompt_feild=question")
    with pytest.raises(DataError, match="There is no prompt file gone.jsonl"):
        shown("gone.jsonl")
