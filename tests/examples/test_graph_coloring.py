"""The second demonstration: its prompts, its policy, and the three runs from end to end."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM

from examples.graph_coloring import make_policy
from megacov.config import load_config
from megacov.data import load_prompts, load_tokenizer
from megacov.rewards.reasoning_gym.rows import read_row
from megacov.rewards.registry import find_verifier
from tests.support.command import run

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "graph_coloring"
RUNS = ROOT / "yaml_configs" / "runs"


def test_the_script_writes_the_shipped_prompts(tmp_path: Path) -> None:
    made = tmp_path / "made.jsonl"
    command = [sys.executable, "-m", "examples.graph_coloring.make_prompts", str(made)]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=ROOT)
    assert made.read_bytes() == (FOLDER / "prompts.jsonl").read_bytes()


def test_every_prompt_can_be_asked_and_answered() -> None:
    config = load_config(RUNS / "graph_coloring_grpo.yaml")
    tokenizer = load_tokenizer(FOLDER / "policy", vocab_size=72)
    prompts = load_prompts(
        FOLDER / "prompts.jsonl",
        tokenizer,
        vocab_size=72,
        max_prompt_length=config.data.max_prompt_length,
        keep_rows=True,
    )
    assert len(prompts) == 512
    verifier = find_verifier("reasoning_gym")
    for prompt in prompts:
        assert tokenizer.unk_token_id not in prompt.token_ids
        colors = list(json.loads(prompt.answer).values())
        # Another right answer: every color is exchanged for another one.
        other = make_policy.write_colors([5 - color for color in colors])
        tokens = tokenizer.encode(other)
        assert len(tokens) + 1 < config.rollout.max_response_length and tokenizer.decode(tokens) == other
        assert verifier(other, prompt.answer, row=prompt.row) == 1.0
        assert verifier(other[:-1], prompt.answer, row=prompt.row) == 0.0
        edges = read_row(prompt.row).metadata["puzzle"]["edges"]
        assert verifier(make_policy.write_colors([1] * 8), prompt.answer, row=prompt.row) == float(not edges)


def test_the_policy_is_small_and_of_the_kind_that_the_script_makes() -> None:
    shipped = AutoModelForCausalLM.from_pretrained(FOLDER / "policy")
    assert sum(path.stat().st_size for path in (FOLDER / "policy").iterdir()) < 4_000_000
    made = make_policy.build_model().state_dict()
    assert {name: weight.shape for name, weight in made.items()} == {
        name: weight.shape for name, weight in shipped.state_dict().items()
    }
    assert shipped.config.vocab_size % 4 == shipped.config.num_key_value_heads % 4 == 0


def test_the_answers_of_the_warm_start_are_proper_colorings_except_for_noise() -> None:
    rng = random.Random(0)
    num_improper = {False: 0, True: 0}
    for _ in range(200):
        for is_noisy in num_improper:
            prompt, answer = make_policy.draw_pair(rng, is_noisy=is_noisy)
            colors = json.loads(answer)
            assert list(colors) == [str(vertex) for vertex in range(8)]
            num_improper[is_noisy] += any(colors[edge[0]] == colors[edge[1]] for edge in prompt.split()[:-1])
    assert num_improper[False] == 0 and 40 < num_improper[True] < 160


def test_a_vertex_without_a_free_color_is_noticed() -> None:
    complete = [(first, second) for second in range(5) for first in range(second)]
    assert make_policy.draw_coloring(complete, random.Random(0)) is None


@pytest.mark.dist
@pytest.mark.slow
def test_the_three_runs_train_and_are_compared(tmp_path: Path) -> None:
    folder = tmp_path / "graph_coloring"
    ended = run(
        "--steps", "2", "--folder", str(folder), log=tmp_path / "log", module=("-m", "examples.graph_coloring.run")
    )
    assert ended.code == 0, ended.output
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["clip_cov_seed0", "compare.png", "grpo_seed0", "kl_cov_seed0"]
    rows = (folder / "grpo_seed0" / "samples").glob("*.jsonl")
    rewards = [json.loads(line)["reward"] for path in rows for line in path.read_text().splitlines()]
    assert 0.1 < sum(rewards) / len(rewards) < 0.8
