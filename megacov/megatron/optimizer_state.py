"""Moves Adam's state between Megatron's distributed optimizer and tensors in the shape of the model's parameters.

A data-parallel rank holds a slice of each flattened parameter's state. For a checkpoint that any layout can load, one
of these ranks, the parameter's owner, assembles the slices. Owners are chosen so that all of them write and read
similar amounts. This works with any Adam: those of Apex and Transformer Engine keep their step count with the parameter
group, torch's with every parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.optimizer import MegatronOptimizer
from torch import Tensor
from torch.distributed import ProcessGroup

MOMENTS = ("exp_avg", "exp_avg_sq")
MAIN_PARAMETER = "param"
# The names under which Megatron's own "fully_reshardable" format keeps them.
KEY_PREFIX = "optimizer.state"


@dataclass(frozen=True)
class _Place:
    """Where the state of one parameter lives.

    parameter: the model's parameter on this tensor- and pipeline-parallel rank.
    inner: Adam with its state on this rank.
    main: [end - start] float32, this rank's slice of the parameter that Adam steps; None if this rank has no slice.
    start, end: bounds of the slice in the flattened parameter.
    owner: rank in `group` that writes and reads the whole state.
    group: ranks that hold the slices.
    """

    parameter: Tensor
    inner: torch.optim.Optimizer
    main: Tensor | None
    start: int
    end: int
    owner: int
    group: ProcessGroup

    @property
    def is_owner(self) -> bool:
        return dist.get_rank(self.group) == self.owner

    @property
    def kinds(self) -> tuple[str, ...]:
        """The tensors in a checkpoint. A float32 parameter is its own main parameter."""
        return MOMENTS if self.parameter.dtype == torch.float32 else (*MOMENTS, MAIN_PARAMETER)

    def slice_of(self, kind: str) -> Tensor | None:
        """This rank's slice; moments are 0 before Adam's first step."""
        if self.main is None or kind == MAIN_PARAMETER:
            return self.main
        value: Tensor | None = self.inner.state.get(self.main, {}).get(kind)
        return torch.zeros_like(self.main) if value is None else value


def distributed_optimizers(optimizer: MegatronOptimizer) -> list[Any]:
    """The distributed optimizers that hold parameters: experts have one of their own, chained to the other.

    They are Any because Megatron has no types.
    """
    chained = getattr(optimizer, "chained_optimizers", [optimizer])
    return [each for each in chained if not getattr(each, "is_stub_optimizer", False)]


def share_out(sizes: Sequence[int], *, num_owners: int) -> list[int]:
    """Assign parameters to owners, each to the owner with the least so far.

    Args:
        sizes: parameter sizes, in an order that all ranks share.
        num_owners: number of owners.

    Returns:
        The owner of each parameter.
    """
    loads = [0] * num_owners
    owners = []
    for size in sizes:
        owner = loads.index(min(loads))
        loads[owner] += size
        owners.append(owner)
    return owners


def _places(optimizer: MegatronOptimizer) -> Iterator[_Place]:
    """Every parameter of this rank, in the same order on all ranks of its group."""
    for each in distributed_optimizers(optimizer):
        group: ProcessGroup = each.data_parallel_group
        parameters = [parameter for buffer in each.buffers for parameter in buffer.param_index_map]
        owners = share_out([parameter.numel() for parameter in parameters], num_owners=group.size())
        for parameter, owner in zip(parameters, owners, strict=True):
            main, start, end = None, 0, 0
            if parameter in each.model_param_gbuf_map:
                held = each._get_model_param_range_map(parameter)["param"]
                group_index, place = each.model_param_group_index_map[parameter]
                main, start, end = each.optimizer.param_groups[group_index]["params"][place], held.start, held.end
            yield _Place(parameter, each.optimizer, main, start, end, owner, group)


@torch.no_grad()
def optimizer_shards(
    optimizer: MegatronOptimizer, parameter_shards: Mapping[int, Any], *, filled: bool
) -> dict[str, Any]:
    """Sharded tensors of the state that this rank owns, with the shapes and offsets of the model's parameters.

    Collectives: with `filled`, the data-parallel group of each parameter: one SUM reduce of its int32 bits for each
    kind, which assembles slices exactly, negative zeros included.

    Args:
        optimizer: optimizer from `build_optimizer`.
        parameter_shards: Megatron's ShardedTensor (or factory) by id() of the parameter.
        filled: whether to fill in the values, for saving; zeros otherwise, for loading.

    Returns:
        "INDEX.KIND" -> ShardedTensor or factory, with float32 data on the parameter's device.
    """
    shards = {}
    for index, place in enumerate(_places(optimizer)):
        model_shard = parameter_shards[id(place.parameter)]
        for kind in place.kinds:
            value = _gathered(place, kind) if filled else None
            if not place.is_owner:
                continue
            if value is None:
                value = torch.zeros_like(place.parameter, dtype=torch.float32)
            # The last of the three numbers counts data-parallel copies. Only the owner's copy is written.
            replica_id = (*model_shard.replica_id[:-1], 0)
            key = f"{KEY_PREFIX}.{kind}.{model_shard.key}"
            changes: dict[str, Any] = {"key": key, "data": value, "replica_id": replica_id}
            if hasattr(model_shard, "dtype"):
                changes["dtype"] = value.dtype
            # Layers share a key and differ in offset.
            shards[f"{index}.{kind}"] = replace(model_shard, **changes)
    return shards


def _gathered(place: _Place, kind: str) -> Tensor | None:
    """The whole state of a parameter on its owner, None elsewhere."""
    part = place.slice_of(kind)
    assert part is None or part.dtype == torch.float32, f"{kind} is {part.dtype}"
    bits = torch.zeros(place.parameter.numel(), dtype=torch.int32, device=place.parameter.device)
    if part is not None:
        bits[place.start : place.end] = part.detach().flatten().view(torch.int32)
    if place.group.size() > 1:
        dist.reduce(bits, dist.get_global_rank(place.group, place.owner), group=place.group)
    return bits.view(torch.float32).view(place.parameter.shape) if place.is_owner else None


@torch.no_grad()
def set_optimizer_state(optimizer: MegatronOptimizer, loaded: Mapping[str, Tensor], *, adam_steps: int) -> None:
    """Distribute the state that owners have loaded to the ranks that hold the slices.

    Collectives: the data-parallel group of each parameter: one broadcast of its float32 state for each kind, from its
    owner.

    Args:
        optimizer: optimizer from `build_optimizer`; written in place.
        loaded: whole states of the parameters that this rank owns, by the names of `optimizer_shards`.
        adam_steps: steps that Adam has made.
    """
    for index, place in enumerate(_places(optimizer)):
        device = place.parameter.device
        state: dict[str, Any] = {}
        for kind in place.kinds:
            if place.is_owner:
                whole = loaded[f"{index}.{kind}"].to(device, torch.float32).contiguous().flatten()
            else:
                whole = torch.empty(place.parameter.numel(), dtype=torch.float32, device=device)
            if place.group.size() > 1:
                dist.broadcast(whole, dist.get_global_rank(place.group, place.owner), group=place.group)
            part = whole[place.start : place.end]
            if place.main is not None and kind == MAIN_PARAMETER:
                place.main.copy_(part.view_as(place.main))
            elif place.main is not None:
                state[kind] = part.view_as(place.main).clone()
        if place.main is not None and adam_steps > 0:
            if _counts_by_parameter(place.inner):
                state["step"] = torch.tensor(float(adam_steps))
            place.inner.state[place.main] = state
    for each in distributed_optimizers(optimizer):
        if adam_steps > 0 and not _counts_by_parameter(each.optimizer):
            for param_group in each.optimizer.param_groups:
                param_group["step"] = adam_steps


def adam_steps(optimizer: MegatronOptimizer) -> int:
    """Steps that Adam has made, the same for all parameters. Call it on a rank that holds some of the state."""
    steps = set()
    for each in distributed_optimizers(optimizer):
        if _counts_by_parameter(each.optimizer):
            steps |= {int(state["step"]) for state in each.optimizer.state.values()}
        else:
            steps |= {int(group["step"]) for group in each.optimizer.param_groups if "step" in group}
    assert len(steps) <= 1, f"parameters have made {sorted(steps)} steps"
    return steps.pop() if steps else 0


def _counts_by_parameter(inner: torch.optim.Optimizer) -> bool:
    return isinstance(inner, torch.optim.Adam | torch.optim.AdamW)
