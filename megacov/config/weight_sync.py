"""Settings of how new weights reach the rollout servers."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, StrictFloat, StrictInt, field_validator

from megacov.config.section import Section
from megacov.config.transports import TRANSPORTS, PauseMode, TransportTraits, Verification

if TYPE_CHECKING:
    TransportName = str
else:
    TransportName = Literal[tuple(TRANSPORTS)]


class WeightSyncSection(Section):
    """How new weights reach the rollout servers."""

    transport: TransportName = Field(
        "disk", description=" ".join(f"{name}: {traits.summary}" for name, traits in TRANSPORTS.items())
    )
    directory: Path | None = None
    """Folder of the disk transport; null for RUN/weights."""
    keep: StrictInt = Field(2, ge=1)
    """Newest versions that the disk transport keeps. [versions]"""
    host: str = Field("127.0.0.1", min_length=1)
    """Private address of rank 0's machine, to which servers connect for a broadcast, or to meet the ranks of
    the trainer."""
    bucket_bytes: StrictInt = Field(512 * 1024**2, ge=1)
    """Size of one message, except by disk; trainer and servers each hold one or two messages. By reshard, the most that
    a rank sends or takes at once; each rank holds it twice. [bytes]"""
    timeout_s: StrictFloat = Field(300.0, gt=0)
    """Deadline of one message, or of all shards by reshard, and of any other call to a server during a push. [s]"""
    pause_mode: PauseMode = "retract"
    """Running requests are ended, recomputed with the new weights, or continued on their old keys and values."""
    verify: Verification = "version"
    """Checked before servers resume: the version that each reports; with checksums, that all hold the same as well, or,
    by reshard, what was sent. The first push by reshard always compares checksums."""
    max_mismatch: StrictFloat | None = Field(0.5, gt=0)
    """End the run where the servers' log-probs of a batch differ more from the trainer's, in the mean of |difference|
    over its tokens; rollout.max_staleness adds what the policy has moved. Null never ends it. [nats]"""

    @property
    def traits(self) -> TransportTraits:
        """Needs and abilities of the transport."""
        return TRANSPORTS[self.transport]

    @field_validator("host")
    @classmethod
    def _host_is_private(cls, host: str) -> str:
        try:
            address = ip_address(host)
        except ValueError:
            raise ValueError("give an IP address, such as 127.0.0.1.") from None
        if address.version == 6:
            raise ValueError("SGLang joins a group by IPv4 only: give an IPv4 address.")
        if address.is_unspecified or not address.is_private:
            raise ValueError(
                "anybody who reaches the group can send weights, so it listens on a private address only: set "
                "127.0.0.1, or the machine's address in its private network."
            )
        return host
