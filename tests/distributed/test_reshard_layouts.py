"""Real SGLang servers of one and two ranks take shards of every layout of the trainer, over a group and by requests."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from megacov.megatron.policy import Policy
from megacov.plan import Layout, ModelSizes, read_model_sizes
from megacov.plan.reshard import ReshardPlan, plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.rollout import GenerateRequest, RolloutClient
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.rollout.loop_thread import LoopThread
from megacov.weight_sync import (
    IpcShardsTransport,
    Meeting,
    OwnShards,
    ReshardTransport,
    SessionSettings,
    WeightTransport,
)
from megacov.weight_sync.model_files import copy_model_files
from tests.support.policies import FLOAT32, laid_out_policy
from tests.support.run_ranks import run_cases
from tests.support.sglang_servers import MODEL, PROMPT, VOCAB_SIZE, changed_weights, log_probs_of, sglang_servers

pytestmark = [pytest.mark.sglang, pytest.mark.dist, pytest.mark.slow]

SERVERS = {1: {}, 2: {"tp-size": 2, "sleep-on-idle": True}}
CORES = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
# Tensor- and pipeline-parallel sizes; what is left of the ranks is data-parallel.
LAYOUTS = {2: [(2, 1), (1, 2), (1, 1)], 4: [(2, 2), (2, 1)]}


class Pusher:
    """Stands in for RolloutWorker: pushes by a transport of its own."""

    def __init__(self, transport: WeightTransport) -> None:
        self._transport = transport

    def push_weights(self, weights: OwnShards, *, version: int) -> None:
        """Has the signature of RolloutWorker's method."""
        self._transport.push(version, weights)


TRANSPORTS = {"reshard": ReshardTransport, "ipc_shards": IpcShardsTransport}
Sampled = list[tuple[tuple[int, ...], tuple[float, ...]]]


def _push(
    address: str, keys: dict[str, str], name: str, folder: Path, tensor: int, pipeline: int, version: int
) -> Sampled:
    """Push once; rank 0 returns tokens and log-probs that the server then samples."""
    with laid_out_policy(tensor, pipeline, path=folder) as policy:
        if policy.groups.world_rank > 0:
            _exchange(policy, None, version)
            return []
        with LoopThread() as loop:
            client = RolloutClient(address, vocab_size=VOCAB_SIZE, **keys)
            loop.run(client.learn_capabilities())
            sizes, data = read_model_sizes(MODEL / "config.json"), dist.get_world_size() // (tensor * pipeline)
            trainer = Layout(tensor=tensor, pipeline=pipeline, data=data)
            transport = TRANSPORTS[name](
                [client],
                run=loop.run,
                settings=SessionSettings(bucket_bytes=100_000, timeout_s=60.0, verify="checksums"),
                meeting=Meeting("gloo", "127.0.0.1", torch.device("cpu")),
                make_plan=lambda servers: _plan(name, sizes, trainer, servers),
            )
            _exchange(policy, transport, version)
            completions = loop.run(client.generate(GenerateRequest(input_ids=PROMPT, n=4, max_new_tokens=12)))
            assert {span.version for each in completions for span in each.version_spans} == {str(version)}
            loop.run(transport._leave())
            loop.run(client.aclose())
            return [(each.token_ids, each.log_probs) for each in completions]


def _plan(name: str, sizes: ModelSizes, trainer: Layout, servers: ServerLayout) -> ReshardPlan:
    plan = plan_reshard(sizes, trainer, servers, vocab_divisible_by=FLOAT32.vocab_divisible_by)
    return plan if name == "reshard" else plan.of_one_replica()  # of the one server that there is


def _exchange(policy: Policy, transport: WeightTransport | None, version: int) -> None:
    worker: Any = None if transport is None else Pusher(transport)
    RolloutExchange(policy.groups, worker, sends_shards=True).push_weights(policy, version=version)


@pytest.fixture(scope="module", params=SERVERS)
def server(request, tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    folder = tmp_path_factory.mktemp("sglang")
    environment = CORES if request.param > 1 else {}
    with sglang_servers(1, folder, environment=environment, **SERVERS[request.param]) as (servers, keys):
        yield servers[0].address, {"api_key": keys.api, "admin_key": keys.admin}


@pytest.mark.parametrize("world_size", LAYOUTS)
def test_a_server_holds_the_weights_of_every_layout(server, world_size, tmp_path):
    cases = []
    both = product(TRANSPORTS, LAYOUTS[world_size])
    for number, (name, (tensor, pipeline)) in enumerate(both, start=10 * world_size):
        folder = tmp_path / str(number)
        folder.mkdir()
        copy_model_files(MODEL, folder)
        save_file(changed_weights(number), folder / "model.safetensors")
        cases.append((*server, name, folder, tensor, pipeline, number))
    for case, (sampled, *_) in zip(cases, run_cases(_push, cases, world_size=world_size), strict=True):
        weights = changed_weights(case[-1])
        assert len(sampled) == 4
        for token_ids, log_probs in sampled:
            expected = log_probs_of(weights, PROMPT, token_ids)
            torch.testing.assert_close(torch.tensor(log_probs).double(), expected, atol=1e-4, rtol=0.0)
