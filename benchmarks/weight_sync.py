"""Time of a push of new weights to rollout servers, by transport and phase, and a projection for a 32B model.

`.venv/bin/python -m benchmarks.weight_sync` pushes the weights of a model of 50 million parameters in float32 from two
tensor-parallel gloo ranks to two real SGLang servers on the CPU (`make sglang`). Transports take turns; for each, the
push with the smallest total counts. Then the projection of weight_sync_projection.py is printed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from dataclasses import asdict, astuple, fields
from pathlib import Path

import torch

from benchmarks.weight_sync_projection import print_projection
from megacov.config import load_config
from megacov.megatron.policy import Policy
from megacov.rollout import RolloutClient, ServerKeys
from megacov.trainer.rollout.loop_thread import LoopThread
from megacov.weight_sync import (
    BroadcastTransport,
    DiskTransport,
    Meeting,
    PushTimes,
    SessionSettings,
    SessionTransport,
    TensorTransport,
)
from tests.support.policies import laid_out_policy
from tests.support.run_ranks import run_cases
from tests.support.sglang_servers import MODEL, sglang_servers

SIZES = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "vocab_size": 8192,
}
BUCKET_BYTES = 64 * 1024**2
TENSOR_PARALLEL = 2
TIMEOUT_S = 300.0
PHASES = [field.name.removesuffix("_s") for field in fields(PushTimes) if field.name.endswith("_s")]


def make_model(folder: Path) -> Path:
    """A random model with the tokenizer of the tiny policy, which uses only a few of the model's tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=64, tie_word_embeddings=False, **SIZES)).save_pretrained(
        folder
    )
    for file in MODEL.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


def make_transports(
    clients: list[RolloutClient], loop: LoopThread, *, model: Path, directory: Path
) -> dict[str, DiskTransport | SessionTransport]:
    """All transports by name. "Tensor by tensor" puts each tensor into a bucket of its own."""
    settings = SessionSettings(bucket_bytes=BUCKET_BYTES, timeout_s=TIMEOUT_S)
    single = SessionSettings(bucket_bytes=1, timeout_s=TIMEOUT_S)
    meeting = Meeting("gloo", "127.0.0.1", torch.device("cpu"))
    return {
        "disk": DiskTransport(clients, run=loop.run, source_model=model, directory=directory),
        "broadcast": BroadcastTransport(clients, run=loop.run, settings=settings, meeting=meeting),
        "broadcast, tensor by tensor": BroadcastTransport(clients, run=loop.run, settings=single, meeting=meeting),
        "ipc (bytes in requests)": TensorTransport(clients, run=loop.run, settings=settings),
    }


def measure_rank(model: str, addresses: list[str], keys: ServerKeys, directory: str, num_rounds: int) -> dict:
    """Push with every transport in turn, on every rank. Rank 0 returns the best times of each."""
    with laid_out_policy(TENSOR_PARALLEL, path=Path(model)) as policy:
        if policy.groups.world_rank > 0:
            num_pushes = 4 * (num_rounds + 1)
            for _ in range(num_pushes):
                assert not list(policy.hf_weights())
            return {}
        with LoopThread() as loop:
            clients = [
                RolloutClient(address, vocab_size=SIZES["vocab_size"], api_key=keys.api, admin_key=keys.admin)
                for address in addresses
            ]
            for client in clients:
                loop.run(client.learn_capabilities())
            transports = make_transports(clients, loop, model=Path(model), directory=Path(directory))
            best = push_in_turn(policy, transports, num_rounds)
            for client in clients:
                loop.run(client.aclose())
    return {name: asdict(times) for name, times in best.items()}


def push_in_turn(
    policy: Policy, transports: dict[str, DiskTransport | SessionTransport], num_rounds: int
) -> dict[str, PushTimes]:
    """Best times of each transport. The first round is for warm-up and is not counted."""
    best: dict[str, PushTimes] = {}
    version = 0
    for round_index in range(num_rounds + 1):
        for name, transport in transports.items():
            version += 1
            times = transport.push(version, policy.hf_weights())
            if round_index > 0 and (name not in best or total_s(times) < total_s(best[name])):
                best[name] = times
    return best


def total_s(times: PushTimes) -> float:
    """Seconds of all phases."""
    return sum(astuple(times)[:-1])


def copy_s(num_bytes: int) -> float:
    """Best time of five copies of so many bytes in memory, which is a lower bound for every transport."""
    source = torch.zeros(num_bytes, dtype=torch.uint8)
    target, best = torch.empty_like(source), float("inf")
    for _ in range(6):
        started = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - started)
    return best


def print_times(best: dict[str, PushTimes]) -> None:
    """Print a line for each transport: seconds by phase, and their sum as a multiple of the floor."""
    num_bytes = next(iter(best.values())).num_bytes
    floor_s = copy_s(num_bytes)
    print(f"{num_bytes / 1e6:.0f} MB from TP {TENSOR_PARALLEL} to two SGLang servers; floor: one copy, {floor_s:.3f} s")
    print(
        f"{'transport':29s}" + "".join(f"{phase + ' s':>12s}" for phase in PHASES) + f"{'sum s':>10s}{'x floor':>10s}"
    )
    for name, times in best.items():
        seconds = "".join(f"{value:12.3f}" for value in astuple(times)[:-1])
        print(f"{name:29s}{seconds}{total_s(times):10.3f}{total_s(times) / floor_s:10.1f}")


def main() -> None:
    """Measure, unless only the projection is wanted, and print the projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pushes of each transport that count")
    parser.add_argument("--projection-only", action="store_true", help="start no server")
    options = parser.parse_args()
    if not options.projection_only:
        if not Path(load_config("yaml_configs/runs/tiny_kl_cov_sglang.yaml").rollout.server_command[0]).exists():
            raise SystemExit("weight_sync: SGLang is not installed; run `make sglang`, or use --projection-only.")
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(Path(folder, "model"))
            with sglang_servers(2, Path(folder), model=model) as (servers, keys):
                addresses = [server.address for server in servers]
                case = (str(model), addresses, keys, str(Path(folder, "weights")), options.rounds)
                ((best, _),) = run_cases(measure_rank, [case], world_size=TENSOR_PARALLEL, deadline_s=1800.0)
        print_times({name: PushTimes(**times) for name, times in best.items()})
    print_projection()


if __name__ == "__main__":
    main()
