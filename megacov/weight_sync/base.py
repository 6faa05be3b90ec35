"""What a transport of weights offers to the trainer, and what it needs from a client of a rollout server."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from megacov.types import WeightBucket, WeightGroup


@dataclass(frozen=True, slots=True)
class PushTimes:
    """What one push cost: seconds to hand the weights over, seconds in which nothing was generated, and bytes sent."""

    transfer_s: float
    paused_s: float
    num_bytes: int


class WeightTransport(Protocol):
    """A way for weights to reach all rollout servers.

    A push is a transaction: afterwards every server generates with the new weights, or it raised WeightSyncError and
    servers that might hold mixed weights stay paused until a later push succeeds.
    """

    async def push(self, version: int, named_tensors: Iterable[tuple[str, Tensor]]) -> PushTimes:
        """Replace the weights of all servers.

        Args:
            version: of the new weights; servers report it as its decimal string.
            named_tensors: every weight by its Hugging Face name, on the CPU; must stay as they are until this returns.

        Returns:
            What it cost.
        """
        ...


class WeightClient(Protocol):
    """The part of a rollout client that a transport by disk uses. Every method raises RolloutError if it failed."""

    @property
    def address(self) -> str:
        """Of the server, for messages."""
        ...

    async def pause(self, mode: Literal["abort", "retract", "in_place"]) -> None:
        """Stop generation between two tokens."""
        ...

    async def resume(self) -> None:
        """Go on after a pause."""
        ...

    async def flush_cache(self) -> None:
        """Drop the prefix cache."""
        ...

    async def update_weights_from_disk(self, model_path: str, *, weight_version: str, flush_cache: bool = True) -> None:
        """Load the weights of a folder on the server's file system."""
        ...

    async def model_info(self) -> Mapping[str, Any]:
        """Tells the `weight_version`, among other things."""
        ...


class BroadcastClient(WeightClient, Protocol):
    """The part of a rollout client that a transport by process group uses besides."""

    async def init_weights_update_group(self, group: WeightGroup) -> None:
        """Join a process group; answers when all have joined."""
        ...

    async def destroy_weights_update_group(self, group_name: str) -> None:
        """Leave it."""
        ...

    async def begin_weight_update(self) -> None:
        """Open an update."""
        ...

    async def update_weights_from_distributed(
        self, bucket: WeightBucket, *, group_name: str, weight_version: str | None = None, flush_cache: bool = True
    ) -> None:
        """Receive what is broadcast; answers when it has."""
        ...

    async def end_weight_update(self) -> None:
        """Close an update."""
        ...

    async def update_weight_version(self, weight_version: str, *, abort_requests: bool = False) -> None:
        """Give the weights another name."""
        ...
