"""Settings of the weights' way to the rollout servers."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field, StrictFloat, StrictInt, field_validator

from megacov.config.section import Section


class WeightSyncSection(Section):
    """How new weights reach the rollout servers."""

    transport: Literal["disk", "broadcast", "ipc"] = "disk"
    """disk: safetensors in a folder that trainer and servers both see. broadcast: a process group of rank 0 and all
    servers. ipc: servers on rank 0's machine read its GPU's memory; on the CPU the requests hold the bytes."""
    directory: Path | None = None
    """Of disk: that folder; null for RUN/weights."""
    keep: StrictInt = Field(2, ge=1)
    """Of disk: newest versions left there. [versions]"""
    host: str = Field("127.0.0.1", min_length=1)
    """Of broadcast: private address of rank 0's machine, which the servers reach."""
    bucket_bytes: StrictInt = Field(512 * 1024**2, ge=1)
    """Of broadcast and ipc: size of one message; trainer and servers each hold one or two of them. [bytes]"""
    timeout_s: StrictFloat = Field(300.0, gt=0)
    """Of broadcast and ipc: deadline of one message, and of any other call to a server meanwhile. [s]"""
    pause_mode: Literal["abort", "retract", "in_place"] = "retract"
    """Requests under way are ended, read anew with the new weights, or continued on old keys and values."""
    verify: Literal["none", "version", "checksums"] = "version"
    """Checked before servers go on: the version that each reports; with checksums, that all hold the same as well."""
    max_mismatch: StrictFloat | None = Field(0.5, gt=0)
    """End the run where the servers' log-probs of a batch differ more from the trainer's, in the mean of |difference|
    over its tokens; with rollout.max_staleness that holds what the policy has moved. Null never does. [nats]"""

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
                "whoever reaches the group can send weights, so it listens on a private address only: set 127.0.0.1, "
                "or the machine's address in its private network."
            )
        return host
