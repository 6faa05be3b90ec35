"""Real SGLang servers on the CPU, started as yaml_configs/runs/tiny_kl_cov_sglang.yaml has them started."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from torch import Tensor

from megacov.config import load_config
from megacov.rollout import ServerKeys, SglangServer, make_keys

RUN = "yaml_configs/runs/tiny_kl_cov_sglang.yaml"
MODEL = Path("examples/tiny_policy")
VOCAB_SIZE = 16
START_TIMEOUT_S = 400.0  # half a minute on idle cores, which others may use


@contextmanager
def sglang_servers(
    number: int, folder: Path, *, model: Path = MODEL
) -> Iterator[tuple[list[SglangServer], ServerKeys]]:
    """So many servers that generate, with logs in the folder, and their keys."""
    rollout, keys = load_config(RUN).rollout, make_keys()
    with ExitStack() as stack:
        servers = [
            SglangServer(
                model.resolve(),
                number=each,
                keys=keys,
                log_path=folder / f"server_{each}.log",
                command=rollout.server_command,
                arguments=rollout.server_arguments,
                environment=rollout.server_environment,
                random_seed=each,
                start_timeout_s=START_TIMEOUT_S,
            )
            for each in range(number)
        ]
        for server in servers:
            stack.callback(server.stop)
            server.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        for server in servers:
            server.wait_ready(deadline)
        yield servers, keys


def changed_weights(seed: int) -> dict[str, Tensor]:
    """Weights of the model with some noise, by their Hugging Face names."""
    from safetensors.torch import load_file

    generator = torch.Generator().manual_seed(seed)
    weights = load_file(MODEL / "model.safetensors")
    return {name: each + 0.05 * torch.randn(each.shape, generator=generator) for name, each in weights.items()}


def log_probs_of(weights: dict[str, Tensor], prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """What transformers computes, at temperature 1."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.load_state_dict(weights)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]
