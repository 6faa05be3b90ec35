"""The plan beside SGLang itself: parameters of real servers that have loaded a model from its folder, rank by rank."""

from __future__ import annotations

import base64
import pickle
import shutil
import time
from contextlib import suppress
from pathlib import Path

import httpx
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from megacov.config import load_config
from megacov.megatron.model_shape import read_model_shape
from megacov.plan import Layout, read_model_sizes
from megacov.plan.reshard import plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.rollout import SglangServer, make_keys
from tests.support.families import make_model
from tests.support.sglang_servers import MODEL, RUN, START_TIMEOUT_S
from tests.support.weight_shards import trainer_shards

torch.set_num_threads(1)
pytestmark = [pytest.mark.sglang, pytest.mark.slow]

# SGLang calls it on every rank, with its model.
SHOW = """
import torch

def show(model, named_tensors):
    held = {name: each.detach().clone() for name, each in model.named_parameters()}
    torch.save(held, f"{FOLDER}/rank_{torch.distributed.get_rank()}")
"""


def held_by_sglang(model: Path, folder: Path, servers: ServerLayout) -> list[dict[str, Tensor]]:
    """Parameters of each rank of a server that has started."""
    (folder / "shown.py").write_text(f"FOLDER = {str(folder)!r}\n{SHOW}")
    rollout, keys = load_config(RUN).rollout, make_keys()
    path = f"{rollout.server_environment['PYTHONPATH']}:{folder}"
    sizes = {"tp-size": servers.tensor, **({"ep-size": servers.expert} if servers.expert > 1 else {})}
    threads = {"SGLANG_CPU_OMP_THREADS_BIND": "|".join("01"[rank % 2] for rank in range(servers.tensor))}
    server = SglangServer(
        model.resolve(),
        number=0,
        keys=keys,
        log_path=folder / "server.log",
        command=rollout.server_command,
        arguments={**rollout.server_arguments, **sizes, "dtype": "float32", "custom-weight-loader": "shown.show"},
        environment={**rollout.server_environment, **threads, "PYTHONPATH": path},
        random_seed=0,
        start_timeout_s=START_TIMEOUT_S,
    )
    nothing = [base64.b64encode(pickle.dumps([])).decode()] * servers.tensor
    requests = {
        "begin_weight_update": {},
        "update_weights_from_tensor": {"serialized_named_tensors": nothing, "load_format": "shown.show"},
        "end_weight_update": {},
    }
    try:
        server.start()
        user, admin = ({"Authorization": f"Bearer {key}"} for key in (keys.api, keys.admin))
        with httpx.Client(timeout=60.0, trust_env=False) as client:
            wait_for_model(server, client, user)
            for name, content in requests.items():
                client.post(f"{server.address}/{name}", json=content, headers=admin).raise_for_status()
    finally:
        server.stop()
    return [torch.load(folder / f"rank_{rank}") for rank in range(servers.tensor)]


def wait_for_model(server: SglangServer, client: httpx.Client, user: dict[str, str]) -> None:
    """Wait without a token: on a CPU without its kernels, SGLang cannot use experts that are on other ranks."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        server.check_alive()
        with suppress(httpx.TransportError):
            if client.get(f"{server.address}/model_info", headers=user).is_success:
                return
        time.sleep(0.2)
    raise AssertionError("the server did not start in time")


@pytest.mark.parametrize(
    ("name", "layout", "servers"),
    [
        ("llama3", Layout(tensor=4, pipeline=2, data=2), ServerLayout(1, 2)),
        ("mistral", Layout(tensor=2), ServerLayout(1, 1)),
        ("qwen2_yarn", Layout(tensor=2, pipeline=2, virtual_pipeline=2), ServerLayout(1, 2)),
        ("qwen2", Layout(data=3), ServerLayout(1, 2)),
        ("qwen3", Layout(tensor=2, data=2), ServerLayout(1, 2)),
        ("qwen3_moe", Layout(tensor=2, data=2, expert=4), ServerLayout(1, 2)),
        ("qwen3_moe", Layout(tensor=2, data=1, expert=2), ServerLayout(1, 2, 2)),
    ],
)
def test_the_plan_fills_what_sglang_has_loaded(
    tmp_path: Path, name: str, layout: Layout, servers: ServerLayout
) -> None:
    # On a CPU, SGLang pads narrower shares of an expert.
    model = make_model(tmp_path / "model", name, **({"moe_intermediate_size": 64} if name == "qwen3_moe" else {}))
    for file in MODEL.glob("tokenizer*"):
        shutil.copyfile(file, model / file.name)
    loaded = held_by_sglang(model, tmp_path, servers)
    shape = read_model_shape(model)
    hf = load_file(model / "model.safetensors")
    held = trainer_shards(hf, shape, layout, vocab_divisible_by=8)
    plan = plan_reshard(read_model_sizes(model / "config.json"), layout, servers, vocab_divisible_by=8)
    for receiver, expected in enumerate(loaded):
        got = {each: torch.zeros(size) for each, size in plan.target_shapes(receiver).items()}
        for piece in plan.received_by(0, receiver):
            source = held[piece.sender][piece.source.name]
            source = source[tuple(map(slice, piece.source.start, piece.source.stop))]
            target = got[piece.target.name][tuple(map(slice, piece.target.start, piece.target.stop))]
            target.copy_(source.view(target.shape))
        assert {each: tensor.shape for each, tensor in got.items()} == {each: x.shape for each, x in expected.items()}
        assert [each for each, tensor in got.items() if not torch.equal(tensor, expected[each])] == []
