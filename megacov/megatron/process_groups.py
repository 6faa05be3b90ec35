"""Sets up torch.distributed and Megatron's parallel state, and returns the groups as a frozen `ParallelGroups`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from megacov.errors import ConfigError
from megacov.megatron import cpu
from megacov.parallel.groups import ParallelGroups


def select_backend(backend: str, *, has_cuda: Sequence[bool]) -> str:
    """The collective backend of a job.

    Args:
        backend: "auto", "gloo" or "nccl".
        has_cuda: whether torch sees a CUDA device, by rank.

    Returns:
        "nccl" or "gloo".

    Raises:
        ConfigError: a rank has no CUDA although NCCL is required or other ranks have CUDA.
    """
    if backend == "gloo" or (backend == "auto" and not any(has_cuda)):
        return "gloo"
    if not all(has_cuda):
        without = has_cuda.index(False)
        raise ConfigError(
            f"parallel.backend is {backend}, but torch sees no CUDA device on {has_cuda.count(False)} of "
            f"{len(has_cuda)} ranks (rank {without} is the first): repair those nodes, or set parallel.backend=gloo."
        )
    return "nccl"


def join_job(*, backend: str, timeout_s: float, rank: int, local_rank: int, world_size: int, init_method: str) -> None:
    """Make this process a rank of the job.

    Collectives: a rendezvous of all ranks; they agree on the backend through its store.

    Args:
        backend: "auto", "gloo" or "nccl".
        timeout_s: seconds after which a collective that waits for a dead peer fails.
        rank: rank of this process in the job.
        local_rank: rank of this process on its node, and its CUDA device.
        world_size: ranks in the job.
        init_method: argument of `torch.distributed.init_process_group` ("env://" or "file://...").

    Raises:
        ConfigError: the backend cannot run on every rank.
    """
    timeout = timedelta(seconds=timeout_s)
    store, rank, world_size = next(rendezvous(init_method, rank=rank, world_size=world_size, timeout=timeout))
    store.set_timeout(timeout)
    chosen = _agree_on_backend(backend, store, rank=rank, world_size=world_size)
    if torch.cuda.is_available():
        # The remainder, because a launcher may show each rank its own device only.
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
    dist.init_process_group(chosen, store=PrefixStore("job", store), rank=rank, world_size=world_size, timeout=timeout)


def _agree_on_backend(backend: str, store: Store, *, rank: int, world_size: int) -> str:
    """Choose a backend that every rank can run, before any group exists: ranks with two backends would deadlock."""
    store.set(f"cuda/{rank}", str(torch.cuda.is_available()))
    has_cuda = [store.get(f"cuda/{other}") == b"True" for other in range(world_size)]
    return select_backend(backend, has_cuda=has_cuda)


def lay_out_ranks(
    *,
    tensor: int,
    pipeline: int,
    timeout_s: float,
    control_timeout_s: float,
    seed: int,
    virtual_pipeline: int = 1,
    context: int = 1,
    expert: int = 1,
) -> ParallelGroups:
    """Arrange the ranks of the job in Megatron's order (tp-cp-ep-dp-pp), and seed its random states.

    Collectives: group creation on all ranks, in Megatron's order.

    Args:
        tensor: tensor-parallel size.
        pipeline: pipeline-parallel size.
        timeout_s: seconds after which a collective that waits for a dead peer fails.
        control_timeout_s: the same for the control group, on which ranks wait while rank 0 samples.
        seed: seed of Megatron's model-parallel random states (dropout).
        virtual_pipeline: virtual stages on each pipeline rank.
        context: context-parallel size; the data-parallel size follows from the others.
        expert: expert-parallel size, over the ranks of a pipeline stage, whatever other dimension they belong to.

    Returns:
        The groups this rank belongs to.

    Raises:
        ConfigError: the sizes do not divide the number of ranks.
    """
    _check_sizes(dist.get_world_size(), tensor=tensor, pipeline=pipeline, context=context, expert=expert)
    cpu.install()
    from megatron.core import parallel_state, tensor_parallel

    parallel_state.initialize_model_parallel(
        tensor,
        pipeline,
        virtual_pipeline if virtual_pipeline > 1 else None,
        context_parallel_size=context,
        expert_model_parallel_size=expert,
        # Experts are not split: they are many and small, and their parts would be too thin to be fast.
        expert_tensor_parallel_size=1,
        distributed_timeout_minutes=math.ceil(timeout_s / 60),
        create_gloo_process_groups=False,
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return ParallelGroups(
        world=dist.group.WORLD,
        control=dist.new_group(backend="gloo", timeout=timedelta(seconds=control_timeout_s)),
        tp=parallel_state.get_tensor_model_parallel_group(),
        pp=parallel_state.get_pipeline_model_parallel_group(),
        cp=parallel_state.get_context_parallel_group(),
        dp=parallel_state.get_data_parallel_group(),
        dp_cp=parallel_state.get_data_parallel_group(with_context_parallel=True),
        ep=parallel_state.get_expert_model_parallel_group(),
        expert_dp=parallel_state.get_expert_data_parallel_group(),
    )


def _check_sizes(world_size: int, *, tensor: int, pipeline: int, context: int, expert: int) -> None:
    if world_size % (tensor * pipeline * context) != 0:
        raise ConfigError(
            f"{world_size} ranks cannot be split into parallel.tensor={tensor} x parallel.pipeline={pipeline} x "
            f"parallel.context={context}: start a multiple of their product."
        )
    if world_size // pipeline % expert != 0:
        raise ConfigError(
            f"parallel.expert is {expert} and a pipeline stage has {world_size // pipeline} ranks, which it does not "
            "divide: lower parallel.expert or start more ranks."
        )


def leave_layout(groups: ParallelGroups) -> None:
    """Destroy the arrangement of the ranks and its groups, so that the same job can be laid out again.

    Tests and benchmarks do this to run many layouts in one job; a run never does.

    Collectives: control: a barrier, because the first rank to leave would close connections that others still use.

    Args:
        groups: groups from `lay_out_ranks`, which are invalid afterwards.
    """
    from megatron.core import parallel_state

    dist.barrier(group=groups.control)
    # Megatron drops its groups without closing them, and each holds threads and sockets. Its list begins with None.
    created = [group for group in parallel_state._global_process_group_list if group is not None]
    parallel_state.destroy_model_parallel()
    for group in (*created, groups.control):
        dist.destroy_process_group(group)


def leave_job() -> None:
    """Leave the job. Safe to call on a process that never joined."""
    from megatron.core import parallel_state

    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()
