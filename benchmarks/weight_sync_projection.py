"""Projected time of a push of Qwen2.5-32B on H100 nodes: arithmetic over the plan of the weights, nothing is measured.

The trainer has TP 8 x PP 2 (x DP, of which one replica sends), and there are 4 SGLang servers of TP 4. All are on nodes
with a 400 Gb/s port for each GPU.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from benchmarks.loading_plan import plan_loading
from megacov.megatron.model_shape import read_model_shape
from megacov.plan import Layout, read_model_sizes
from megacov.plan.reshard import plan_reshard
from megacov.plan.reshard_traffic import Traffic, push_traffic
from megacov.plan.weight_parts import ServerLayout

MODEL = Path(__file__).parents[1] / "yaml_configs" / "models" / "qwen2.5-32b"
TENSOR, PIPELINE = 8, 2
NUM_SERVERS, SERVER_TENSOR = 4, 4


@dataclass(frozen=True)
class Assumptions:
    """Rates in bytes per second, and costs in seconds.

    network: rate of one port of 400 Gb/s.
    nvlink: rate of one GPU in one direction.
    memory: rate of a GPU's memory, for reads and writes together.
    file_write, file_read: rates of one writer and of each reading server on a parallel file system.
    message_s: cost of a bucket in HTTP and in the scheduler of a server.
    request_s: trainer's CPU time for a request; each bucket is announced to each server with one request.
    control_s: cost of each call before and after the buckets, such as flushing, names and checks.
    round_s: cost of beginning a group of sends and receives, and of waiting for it.
    """

    network: float = 50e9
    nvlink: float = 450e9
    memory: float = 3.35e12
    file_write: float = 5e9
    file_read: float = 5e9
    message_s: float = 0.01
    request_s: float = 0.001
    control_s: float = 0.02
    round_s: float = 0.001


@dataclass(frozen=True)
class Projection:
    """Seconds by phase of one transport."""

    pause_s: float
    gather_s: float
    transfer_s: float
    load_s: float
    flush_s: float

    @property
    def total_s(self) -> float:
        """Sum of all phases, since the transports do them one after the other."""
        return self.pause_s + self.gather_s + self.transfer_s + self.load_s + self.flush_s


def weight_bytes() -> tuple[int, int]:
    """Bytes of all weights, and of those after the first pipeline stage, without the padding of the vocabulary."""
    shape = read_model_shape(MODEL)
    plans = plan_loading(
        shape,
        tensor=TENSOR,
        pipeline=PIPELINE,
        virtual_pipeline=1,
        expert=1,
        vocab_divisible_by=1,
        dtype=torch.bfloat16,
    )
    # Norms are counted once for every tensor rank; they are a ten-thousandth of the weights.
    return sum(plan.weight_bytes for plan in plans), sum(plan.weight_bytes for plan in plans if plan.stage > 0)


def shard_traffic() -> Traffic:
    """What a push from shard to shard moves."""
    plan = plan_reshard(
        read_model_sizes(MODEL / "config.json"),
        Layout(tensor=TENSOR, pipeline=PIPELINE),
        ServerLayout(NUM_SERVERS, SERVER_TENSOR),
        vocab_divisible_by=1,
    )
    return push_traffic(plan, value_bytes=2, bucket_bytes=Push.bucket_bytes)


@dataclass(frozen=True)
class Push:
    """A push of weights.

    total, later_stages: bytes of all weights, and of those after the first pipeline stage.
    sent, received: bytes from shard to shard, of the ranks of trainer and servers that move most; `reshard` reads them.
    """

    total: int
    later_stages: int
    tensor: int = TENSOR
    servers: int = NUM_SERVERS
    server_tensor: int = SERVER_TENSOR
    bucket_bytes: int = 512 * 1024**2
    sent: int = 0
    received: int = 0


def project(rates: Assumptions, push: Push) -> dict[str, Projection]:
    """Projections by transport. ipc is for servers on the trainer's own GPUs, the others for servers on other nodes."""
    total = push.total
    num_buckets = -(-total // push.bucket_bytes)
    gather_s = total * (push.tensor - 1) / push.tensor / rates.nvlink + push.later_stages / rates.network
    load_s = 2 * total / push.server_tensor / rates.memory
    control_s = max(rates.control_s, push.servers * rates.request_s)
    bucket_s = max(rates.message_s, push.servers * rates.request_s)
    return {
        "disk": Projection(control_s, gather_s, total / rates.file_write, total / rates.file_read, 4 * control_s),
        "broadcast": Projection(
            2 * control_s,
            gather_s,
            # Every byte leaves the port of the only source once; every rank receives all bytes and keeps its part.
            total / rates.network + num_buckets * bucket_s,
            load_s + control_s,
            4 * control_s,
        ),
        "ipc": Projection(
            2 * control_s, gather_s, total / rates.nvlink + num_buckets * bucket_s, load_s, 4 * control_s
        ),
        "reshard": Projection(
            2 * control_s,
            0.0,
            # All ports send at once, after the first bucket is packed, and one request starts all.
            max(push.sent, push.received) / rates.network
            + 2 * push.bucket_bytes / rates.memory
            + -(-push.sent // push.bucket_bytes) * rates.round_s
            + bucket_s,
            2 * push.received / rates.memory,
            4 * control_s,
        ),
    }


def print_projection() -> None:
    """Print the table, its assumptions, and published times."""
    rates, (total, later_stages), moved = Assumptions(), weight_bytes(), shard_traffic()
    print(
        f"\nProjection, not measured: Qwen2.5-32B in bfloat16, {total / 1e9:.1f} GB, of it {later_stages / 1e9:.1f} GB "
        f"on the second stage; TP {TENSOR} x PP {PIPELINE} to {NUM_SERVERS} x TP {SERVER_TENSOR}."
    )
    print(
        f"Assumed: {rates.network / 1e9:.0f} GB/s a port, {rates.nvlink / 1e9:.0f} GB/s NVLink one way, "
        f"{rates.memory / 1e12:.2f} TB/s GPU memory, {rates.file_write / 1e9:.0f} GB/s a node to and from the file "
        f"system, {rates.message_s * 1e3:.0f} ms a bucket of 512 MiB, {rates.round_s * 1e3:.0f} ms a round of sends, "
        f"{rates.control_s * 1e3:.0f} ms a call; phases follow one another."
    )
    names = [field.name.replace("_", " ") for field in fields(Projection)]
    print(f"{'transport':14s}" + "".join(f"{name:>12s}" for name in names) + f"{'sum s':>10s}")
    for name, times in project(rates, Push(total, later_stages, sent=moved.sent, received=moved.received)).items():
        print(f"{name:14s}" + "".join(f"{value:12.2f}" for value in astuple(times)) + f"{times.total_s:10.2f}")
    own = total / SERVER_TENSOR
    print(
        f"Floor, each rollout GPU taking in its own {own / 1e9:.1f} GB only: {own / rates.network:.2f} s. Published "
        "for 30B to 32B: NeMo-RL nccl_reshard 0.74 to 1.00 s (16+16 H100), miles RDMA 2.16 s and broadcast "
        "2.67 s, SGLang flattened buckets 2.5 s, slime colocated on 8 H200 about 3 s, verl checkpoint engine about 7 s."
    )


if __name__ == "__main__":
    print_projection()
