"""Real SGLang servers on the CPU, started as in yaml_configs/runs/tiny_kl_cov_sglang.yaml."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import httpx
import torch
from torch import Tensor

from megacov.config import load_config
from megacov.config.transports import TRANSPORTS
from megacov.launch.loader import with_loader
from megacov.megatron.model_shape import read_model_shape
from megacov.megatron.weight_table import weight_rules
from megacov.plan import Layout, read_model_sizes
from megacov.plan.reshard import plan_reshard
from megacov.rollout import GenerateRequest, RolloutClient, ServerKeys, SglangServer, make_keys
from megacov.weight_sync import (
    BroadcastTransport,
    DiskTransport,
    IpcShardsTransport,
    Meeting,
    OwnShards,
    ReshardTransport,
    RunOnLoop,
    SessionSettings,
    TensorTransport,
)

RUN = "yaml_configs/runs/tiny_kl_cov_sglang.yaml"
MODEL = Path("examples/tiny_policy")
VOCAB_SIZE = 16
LOADER = TRANSPORTS["reshard"].loader
PROMPT = (4, 5, 6, 7)
START_TIMEOUT_S = 400.0  # half a minute on idle cores, which others may use


@contextmanager
def sglang_servers(
    number: int,
    folder: Path,
    *,
    model: Path = MODEL,
    environment: Mapping[str, str] = MappingProxyType({}),
    **arguments: str | int | float,
) -> Iterator[tuple[list[SglangServer], ServerKeys]]:
    """Servers that generate and take weights by any transport, with their keys.

    Logs are in the folder. Further options are such as watchdog_timeout.
    """
    rollout, keys = load_config(RUN).rollout, make_keys()
    options, variables = with_loader(
        {**rollout.server_arguments, **arguments}, {**rollout.server_environment, **environment}, LOADER
    )
    with ExitStack() as stack:
        servers = [
            SglangServer(
                model.resolve(),
                number=each,
                keys=keys,
                log_path=folder / f"server_{each}.log",
                command=rollout.server_command,
                arguments=options,
                environment=variables,
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


def shards_of(weights: dict[str, Tensor]) -> OwnShards:
    """The same weights as the one rank of a trainer holds them."""
    rules = weight_rules(read_model_shape(MODEL), padded_vocab_size=VOCAB_SIZE)
    tensors = {rule.names[0]: rule.layout.shard([weights[name] for name, _ in rule.sources], 1) for rule in rules}
    return OwnShards(tensors, 1, lambda _command: None)


def log_probs_of(weights: dict[str, Tensor], prompt: tuple[int, ...], response: tuple[int, ...]) -> Tensor:
    """Log-probs by transformers, at temperature 1."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    model.load_state_dict(weights)
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1].double()
    return logits.log_softmax(-1).gather(-1, torch.tensor(response)[:, None])[:, 0]


def clients_of(
    running: tuple[list[SglangServer], ServerKeys], *, request_timeout_s: float = 60.0
) -> list[RolloutClient]:
    servers, keys = running
    keyed = {"api_key": keys.api, "admin_key": keys.admin, "request_timeout_s": request_timeout_s}
    return [RolloutClient(server.address, vocab_size=VOCAB_SIZE, **keyed) for server in servers]


async def wait_for_running(server: SglangServer, keys: ServerKeys, number: int, *, deadline_s: float = 60.0) -> None:
    """Wait until the server generates for `number` requests at once."""
    key = {"Authorization": f"Bearer {keys.api}"}
    async with asyncio.timeout(deadline_s), httpx.AsyncClient(headers=key, trust_env=False) as client:
        running = 0
        while running < number:
            response = await client.get(server.address + "/v1/loads", params={"include": "core"})
            running = sum(each["num_running_reqs"] for each in response.raise_for_status().json()["loads"])


async def assert_hold(clients: list[RolloutClient], weights: dict[str, Tensor], version: str) -> None:
    """Check the servers' weights by version, by log-probs of samples, and by checksums."""
    request = GenerateRequest(input_ids=PROMPT, n=4, max_new_tokens=12)
    for client in clients:
        assert (await client.model_info())["weight_version"] == version
        for completion in await client.generate(request):
            assert {span.version for span in completion.version_spans} == {version}
            expected = log_probs_of(weights, PROMPT, completion.token_ids)
            torch.testing.assert_close(torch.tensor(completion.log_probs).double(), expected, atol=1e-4, rtol=0.0)
    sums = [await client.weights.checksums() for client in clients]
    assert sums == sums[:1] * len(clients)


def make_transport(name: str, clients: list[RolloutClient], run: RunOnLoop, folder: Path, **options: Any):
    """A transport by name, with messages much smaller than the model."""
    if name == "disk":
        return DiskTransport(clients, run=run, source_model=MODEL, directory=folder / "weights", **options)
    settings = SessionSettings(**{"bucket_bytes": 200_000, "timeout_s": 60.0} | options)
    if name == "ipc":
        return TensorTransport(clients, run=run, settings=settings)
    meeting = Meeting("gloo", "127.0.0.1", torch.device("cpu"))
    if name == "broadcast":
        return BroadcastTransport(clients, run=run, settings=settings, meeting=meeting)
    sizes = read_model_sizes(MODEL / "config.json")
    if name == "ipc_shards":
        return IpcShardsTransport(
            clients,
            run=run,
            settings=settings,
            meeting=meeting,
            make_plan=lambda servers: plan_reshard(
                sizes, Layout(), replace(servers, number=1), vocab_divisible_by=VOCAB_SIZE
            ).of_one_replica(),
        )
    assert name == "reshard"
    return ReshardTransport(
        clients,
        run=run,
        settings=settings,
        meeting=meeting,
        make_plan=lambda servers: plan_reshard(sizes, Layout(), servers, vocab_divisible_by=VOCAB_SIZE),
    )
