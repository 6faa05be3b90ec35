"""The tiny policy is small, fits every layout the tests use, comes from its script, and has head-room to learn."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from megacov.rewards.verifiers.sum_pairs import sum_pairs

FOLDER = Path(__file__).parents[2] / "examples" / "tiny_policy"
MAX_RESPONSE_LENGTH = 8


@cache
def load() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    return AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)


@torch.no_grad()
def sample(model: PreTrainedModel, tokens: Tensor, *, seed: int) -> tuple[Tensor, float]:
    """Sample responses [n, 8] to prompts of equal length, and their mean entropy in nats a token."""
    generator = torch.Generator().manual_seed(seed)
    prompt_length = tokens.shape[1]
    finished = torch.zeros(len(tokens), dtype=torch.bool)
    total_entropy, num_tokens = 0.0, 0
    for _ in range(MAX_RESPONSE_LENGTH):
        log_probs = model(input_ids=tokens).logits[:, -1].log_softmax(-1)
        entropy = -(log_probs.exp() * log_probs).sum(-1)
        total_entropy += entropy[~finished].sum().item()
        num_tokens += int((~finished).sum())
        drawn = torch.multinomial(log_probs.exp(), 1, generator=generator)
        tokens = torch.cat([tokens, drawn.masked_fill(finished[:, None], model.config.pad_token_id)], dim=1)
        finished |= drawn[:, 0] == model.config.eos_token_id
    return tokens[:, prompt_length:], total_entropy / num_tokens


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir() if path.is_file()) < 2_000_000


def test_the_model_divides_by_every_layout_of_the_tests() -> None:
    model, tokenizer = load()
    config = model.config
    assert model.dtype == torch.float32
    assert config.model_type == "qwen2"
    assert config.num_attention_heads % 4 == config.num_key_value_heads % 4 == config.intermediate_size % 4 == 0
    assert config.vocab_size % 4 == 0
    assert config.num_hidden_layers % 2 == 0
    assert config.vocab_size == len(tokenizer)
    assert (config.pad_token_id, config.eos_token_id) == (tokenizer.pad_token_id, tokenizer.eos_token_id)
    assert all(layer.self_attn.q_proj.bias.abs().max() > 0 for layer in model.model.layers)


def test_the_tokenizer_reads_and_writes_character_by_character() -> None:
    _, tokenizer = load()
    text = "0123456789+="
    token_ids = tokenizer.encode(text)
    assert len(token_ids) == len(set(token_ids)) == len(text)
    assert tokenizer.decode(token_ids) == text
    assert tokenizer.decode([*token_ids, tokenizer.eos_token_id], skip_special_tokens=True) == text


def test_the_warm_start_leaves_head_room() -> None:
    """Reward about 0.05 and entropy about 1.3 nats a token, with first numbers from all over."""
    model, tokenizer = load()
    targets = range(100, 200)
    targets = [target for target in targets for _ in range(10)]
    tokens = torch.tensor([tokenizer.encode(f"{target}=") for target in targets])
    responses, entropy = sample(model, tokens, seed=0)
    texts = tokenizer.batch_decode(responses, skip_special_tokens=True)
    rewards = [sum_pairs(text, str(target)) for text, target in zip(texts, targets, strict=True)]
    assert 0.02 < sum(rewards) / len(rewards) < 0.1
    assert 1.15 < entropy < 1.6
    first_numbers = {text.partition("+")[0] for text in texts}
    assert len(first_numbers) > 100


def test_the_script_makes_a_model_of_the_shipped_kind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "examples.tiny_policy.make_tiny_policy", str(tmp_path)]
    command += ["--clean-steps", "2", "--noisy-steps", "1"]
    subprocess.run(command, check=True, capture_output=True, timeout=120, cwd=FOLDER.parents[1])
    assert (tmp_path / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
    assert (tmp_path / "config.json").read_text() == (FOLDER / "config.json").read_text()
    made = AutoModelForCausalLM.from_pretrained(tmp_path).state_dict()
    shipped = load()[0].state_dict()
    assert {name: weight.shape for name, weight in made.items()} == {name: w.shape for name, w in shipped.items()}
