"""The sum-pairs prompts are what their script writes; the tiny policy's tokenizer and the verifier take them all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from megacov.data import load_prompts, load_tokenizer
from megacov.rewards.verifiers.sum_pairs import sum_pairs

EXAMPLES = Path(__file__).parents[2] / "examples"
PROMPTS = EXAMPLES / "sum_pairs" / "prompts.jsonl"


def test_the_script_writes_the_shipped_file(tmp_path: Path) -> None:
    script = EXAMPLES / "sum_pairs" / "make_prompts.py"
    made = tmp_path / "made.jsonl"
    subprocess.run([sys.executable, str(script), str(made)], check=True, capture_output=True, timeout=60)
    assert made.read_bytes() == PROMPTS.read_bytes()


def test_every_prompt_can_be_asked_and_answered() -> None:
    tokenizer = load_tokenizer(EXAMPLES / "tiny_policy", vocab_size=16)
    prompts = load_prompts(PROMPTS, tokenizer, vocab_size=16, max_prompt_length=4)
    assert [prompt.answer for prompt in prompts] == [str(target) for target in range(10, 200)]
    for prompt in prompts:
        assert prompt.text == f"{prompt.answer}="
        assert tokenizer.unk_token_id not in prompt.token_ids
        assert sum_pairs(f"7+{int(prompt.answer) - 7}", prompt.answer) == 1.0
        assert sum_pairs(f"7+{int(prompt.answer) - 8}", prompt.answer) == 0.0
