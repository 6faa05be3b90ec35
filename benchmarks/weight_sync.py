"""Time of a push of new weights to rollout servers, by transport and phase, and a projection for a 32B model.

`.venv/bin/python -m benchmarks.weight_sync` pushes the weights of a model of 50 million parameters in float32 from four
tensor-parallel gloo ranks to two real SGLang servers of two ranks on the CPU (`make sglang`). Transports take turns.
The servers begin with other weights than the trainer's, and these change before each push. After each, all ranks of
the servers must hold the bits of that push, by the sums of weight_sync_sums.py. For each transport, the push with the
smallest total counts. Then the projection of weight_sync_projection.py is printed.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, astuple, fields, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.weight_sync_projection import print_projection
from benchmarks.weight_sync_sums import PushCheck
from megacov.config import load_config
from megacov.megatron.policy import Policy
from megacov.plan import Layout, read_model_sizes
from megacov.plan.reshard import ReshardPlan, plan_reshard
from megacov.plan.weight_parts import ServerLayout
from megacov.rollout import RolloutClient, ServerKeys
from megacov.trainer.rollout.exchange import RolloutExchange
from megacov.trainer.rollout.loop_thread import LoopThread
from megacov.weight_sync import (
    BroadcastTransport,
    DiskTransport,
    IpcShardsTransport,
    Meeting,
    PushTimes,
    ReshardTransport,
    SessionSettings,
    TensorTransport,
    WeightTransport,
)
from tests.support.policies import FLOAT32, laid_out_policy
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
TENSOR_PARALLEL, NUM_SERVERS, SERVER_TENSOR = 4, 2, 2
SERVER: dict[str, Any] = {"tp-size": SERVER_TENSOR, "sleep-on-idle": True}
CORES = {"SGLANG_CPU_OMP_THREADS_BIND": "0|1"}
TIMEOUT_S = 300.0
PHASES = [field.name.removesuffix("_s") for field in fields(PushTimes) if field.name.endswith("_s")]


def make_model(folder: Path, *, seed: int) -> Path:
    """A random model with the tokenizer of the tiny policy, which uses only a few of the model's tokens."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    Qwen2ForCausalLM(Qwen2Config(max_position_embeddings=64, tie_word_embeddings=False, **SIZES)).save_pretrained(
        folder
    )
    for file in MODEL.glob("tokenizer*"):
        shutil.copyfile(file, folder / file.name)
    return folder


NAMES = ("disk", "broadcast", "broadcast, tensor by tensor", "ipc (bytes in requests)", "reshard", "ipc_shards")
FROM_SHARDS = ("reshard", "ipc_shards")


def make_transports(
    clients: list[RolloutClient], loop: LoopThread, *, model: Path, directory: Path
) -> dict[str, WeightTransport]:
    """All transports by name. "Tensor by tensor" puts each tensor into a bucket of its own."""
    settings = SessionSettings(bucket_bytes=BUCKET_BYTES, timeout_s=TIMEOUT_S)
    single = SessionSettings(bucket_bytes=1, timeout_s=TIMEOUT_S)
    meeting = Meeting("gloo", "127.0.0.1", torch.device("cpu"))
    sizes, trainer = read_model_sizes(model / "config.json"), Layout(tensor=TENSOR_PARALLEL)

    def plan(servers: ServerLayout) -> ReshardPlan:
        return plan_reshard(sizes, trainer, servers, vocab_divisible_by=FLOAT32.vocab_divisible_by)

    made: tuple[WeightTransport, ...] = (
        DiskTransport(clients, run=loop.run, source_model=model, directory=directory),
        BroadcastTransport(clients, run=loop.run, settings=settings, meeting=meeting),
        BroadcastTransport(clients, run=loop.run, settings=single, meeting=meeting),
        TensorTransport(clients, run=loop.run, settings=settings),
        ReshardTransport(clients, run=loop.run, settings=settings, meeting=meeting, make_plan=plan),
        IpcShardsTransport(
            clients,
            run=loop.run,
            settings=settings,
            meeting=meeting,
            make_plan=lambda servers: plan(replace(servers, number=1)).of_one_replica(),
        ),
    )
    return dict(zip(NAMES, made, strict=True))


class Pusher:
    """In place of a run's RolloutWorker: pushes by one transport, and keeps the times."""

    def __init__(self, transport: WeightTransport) -> None:
        self._transport = transport
        self.times: list[PushTimes] = []

    def push_weights(self, weights: Any, *, version: int) -> None:
        """As RolloutWorker's method."""
        self.times.append(self._transport.push(version, weights))


def measure_rank(
    model: str, addresses: list[str], keys: ServerKeys, directory: str, num_rounds: int, names: list[str]
) -> tuple[dict[str, list[dict[str, Any]]], int]:
    """Push with every transport in turn, on every rank. Rank 0 returns the times that count, and the checks."""
    with laid_out_policy(TENSOR_PARALLEL, path=Path(model)) as policy, ExitStack() as stack:
        pushers: dict[str, Pusher] = {}
        check: PushCheck | None = None
        if policy.groups.world_rank == 0:
            loop = stack.enter_context(LoopThread())
            clients = [
                RolloutClient(address, vocab_size=SIZES["vocab_size"], api_key=keys.api, admin_key=keys.admin)
                for address in addresses
            ]
            for client in clients:
                stack.callback(lambda closed=client: loop.run(closed.aclose()))
                loop.run(client.learn_capabilities())
            transports = make_transports(clients, loop, model=Path(model), directory=Path(directory))
            pushers = {name: Pusher(transports[name]) for name in names}
            check = PushCheck(lambda: [loop.run(client.weights.checksums()) for client in clients], policy.shape)
        worker: Any = pushers.get
        exchanges = {
            name: RolloutExchange(policy.groups, worker(name), sends_shards=name in FROM_SHARDS) for name in names
        }
        push_in_turn(policy, exchanges, check, num_rounds=num_rounds)
    found = {name: [asdict(times) for times in each.times[1:]] for name, each in pushers.items()}
    return found, check.num_pushes if check is not None else 0


@torch.no_grad()
def change_weights(policy: Policy) -> None:
    """Change every value, alike on all ranks."""
    for chunk in policy.chunks:
        for parameter in chunk.parameters():
            parameter.add_(1 / 64)


def push_in_turn(
    policy: Policy, exchanges: dict[str, RolloutExchange], check: PushCheck | None, *, num_rounds: int
) -> None:
    """Push by each transport, again and again, weights that no server has had. The first round is for warm-up."""
    for round_index in range(num_rounds + 1):
        for number, (name, exchange) in enumerate(exchanges.items()):
            change_weights(policy)
            pushed = dict(policy.hf_weights())  # on all ranks, of which rank 0 alone gets tensors
            exchange.push_weights(policy, version=1 + number + round_index * len(exchanges))
            if check is not None:
                check.check(pushed, name)


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


def print_times(found: dict[str, list[PushTimes]]) -> None:
    """Print the best push of each transport: seconds by phase, and their sum as a multiple of the floor."""
    best = {name: min(times, key=total_s) for name, times in found.items()}
    num_bytes = max(times.num_bytes for times in best.values())
    floor_s = copy_s(num_bytes)
    print(
        f"{num_bytes / 1e6:.0f} MB from TP {TENSOR_PARALLEL} to two SGLang servers of TP {SERVER_TENSOR}; floor: one "
        f"copy, {floor_s:.3f} s"
    )
    print(
        f"{'transport':29s}" + "".join(f"{phase + ' s':>12s}" for phase in PHASES) + f"{'sum s':>10s}{'x floor':>10s}"
    )
    for name, times in best.items():
        seconds = "".join(f"{value:12.3f}" for value in astuple(times)[:-1])
        print(f"{name:29s}{seconds}{total_s(times):10.3f}{total_s(times) / floor_s:10.1f}")
    if {"broadcast", "reshard"} <= found.keys():
        gained = [
            (theirs.gather_s + theirs.transfer_s) / (ours.gather_s + ours.transfer_s)
            for theirs, ours in zip(found["broadcast"], found["reshard"], strict=True)
        ]
        everything, own = best["broadcast"].num_bytes / 1e6, best["reshard"].num_bytes / 1e6 / SERVER_TENSOR
        receivers = NUM_SERVERS * SERVER_TENSOR
        gathered, broadcast, resharded = (TENSOR_PARALLEL - 1) * everything, receivers * everything, receivers * own
        print(
            f"gather and transfer: broadcast takes {median(gained):.1f} times as long as reshard "
            f"({min(gained):.1f} to {max(gained):.1f}), goal 2. A rank of a server receives {everything:.1f} MB by "
            f"broadcast, and {own:.1f} MB by reshard: its part of the plan, divided into rounds. All ranks together "
            f"receive {gathered:.0f} MB by the all-gather and {broadcast:.0f} MB by broadcast, or {resharded:.0f} MB, "
            f"so bytes alone allow {(gathered + broadcast) / resharded:.1f} times."
        )


def main() -> None:
    """Measure, unless only the projection is wanted, and print the projection."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="pushes of each transport that count")
    parser.add_argument("--transports", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--projection-only", action="store_true", help="start no server")
    options = parser.parse_args()
    if not options.projection_only:
        if not Path(load_config("yaml_configs/runs/tiny_kl_cov_sglang.yaml").rollout.server_command[0]).exists():
            raise SystemExit("weight_sync: SGLang is not installed; run `make sglang`, or use --projection-only.")
        with tempfile.TemporaryDirectory() as folder:
            model, others = make_model(Path(folder, "model"), seed=0), make_model(Path(folder, "others"), seed=1)
            with sglang_servers(NUM_SERVERS, Path(folder), model=others, environment=CORES, **SERVER) as (
                servers,
                keys,
            ):
                addresses = [server.address for server in servers]
                case = (str(model), addresses, keys, str(Path(folder, "weights")), options.rounds, options.transports)
                (((found, num_pushes), *_),) = run_cases(
                    measure_rank, [case], world_size=TENSOR_PARALLEL, deadline_s=1800.0
                )
        print_times({name: [PushTimes(**each) for each in times] for name, times in found.items()})
        print(f"After each of {num_pushes} pushes, every rank of every server held its bits, and had held others.")
    print_projection()


if __name__ == "__main__":
    main()
