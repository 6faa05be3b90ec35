"""Settings of the rollout: servers, numbers of samples, how tokens are drawn, and deadlines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, StrictFloat, StrictInt, field_validator

from megacov.config.addresses import check_addresses, is_ip_address, is_private
from megacov.config.section import Section

# SGLang options that follow from other settings, or that are secret.
_OWN_OPTIONS = {
    "model": "model.path",
    "model-path": "model.path",
    "dtype": "model.dtype",
    "random-seed": "run.seed",
    "host": "rollout.host",
    "port": "",
    "config": "",
    "api-key": "",
    "admin-api-key": "",
}


class RolloutSection(Section):
    """Sampling of responses."""

    engine: Literal["embedded", "sglang"] = "embedded"
    """Rollout servers: one on the CPU that the trainer starts, or SGLang servers."""
    addresses: tuple[str, ...] = ()
    """URLs of running SGLang servers, as in [http://10.0.0.5:30000]."""
    addresses_file: Path | None = None
    """Text file with such URLs, one a line, in place of addresses; servers are added and drained as it changes."""
    keys_file: Path | None = None
    """YAML file with api-key and admin-api-key of running servers; only its owner may read it."""
    servers: StrictInt = Field(0, ge=0)
    """SGLang servers that the trainer starts on its own machine, in place of addresses. [servers]"""
    server_command: tuple[str, ...] = Field(("python", "-m", "sglang.launch_server"), min_length=1)
    """Command that starts such a server; options are appended."""
    server_arguments: dict[str, StrictBool | StrictInt | StrictFloat | str | tuple[str | int | float, ...]] = Field(
        default_factory=dict
    )
    """SGLang options of every such server, without their dashes, as in {tp-size: 2}; true makes a flag."""
    server_environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = Field(default_factory=dict)
    """Environment variables of such servers, in addition to the trainer's."""
    server_devices: tuple[str, ...] = ()
    """CUDA_VISIBLE_DEVICES of each such server, as in ["4,5", "6,7"]; if empty, each sees what the trainer sees."""
    colocated: StrictBool = False
    """SGLang servers share the trainer's GPUs, and free their memory while it computes."""
    host: str = Field("127.0.0.1", min_length=1)
    """Private address on which servers that the trainer starts listen."""
    port: StrictInt = Field(0, ge=0, le=65535)
    """Port of the embedded server; 0 takes a free one. [port number]"""
    num_threads: StrictInt = Field(1, ge=1)
    """Compute threads of the embedded server. [threads]"""

    prompts_per_step: StrictInt = Field(256, ge=1)
    """Prompts of one rollout batch. [prompts]"""
    samples_per_prompt: StrictInt = Field(8, ge=2)
    """Responses to each prompt, at least 2, since an advantage is relative to its group. [sequences]"""
    max_response_length: StrictInt = Field(8192, ge=1)
    """Longest response; generation stops there. [tokens]"""
    temperature: StrictFloat = Field(1.0, gt=0)
    """Sampling temperature; the trainer computes log-probs at the same temperature. [ratio]"""
    top_p: StrictFloat = Field(1.0, gt=0, le=1)
    """Sample from the smallest set of tokens with at least this probability. [fraction]"""
    top_k: StrictInt = Field(-1, ge=-1)
    """Sample from this many most likely tokens; -1 for the whole vocabulary. [tokens]"""
    stop: tuple[str, ...] = ()
    """Texts that end a response, in addition to the end-of-sequence token."""
    stop_token_ids: tuple[Annotated[StrictInt, Field(ge=0)], ...] = ()
    """Token ids that end a response, in addition to the model's own end-of-sequence tokens."""
    mask_overlong: StrictBool = False
    """Responses that the length limit cut carry no loss; their rewards still count in the mean of their group."""
    filter_groups: bool = True
    """Drop groups whose rewards are all equal, and sample others in their place."""
    max_filter_rounds: StrictInt = Field(10, ge=1)
    """Largest number of further prompts that replace dropped groups, as a multiple of prompts_per_step. [rounds]"""
    over_sample: StrictFloat = Field(1.0, ge=1)
    """Prompts that a step starts at once, as a multiple of prompts_per_step; it aborts those not needed. [ratio]"""
    max_staleness: StrictInt = Field(0, ge=0)
    """Steps by which sampling weights may lag behind trained ones; above 0, both happen at once. [steps]"""
    extra_prompts: StrictInt = Field(0, ge=0)
    """Prompts sampled at the same time beyond prompts_per_step; a step takes the groups that end first. [prompts]"""
    partial_after_s: StrictFloat | None = Field(None, gt=0)
    """Time after which a step takes fewer groups and leaves the rest for later; null waits for all. [s]"""

    max_concurrency: StrictInt = Field(256, ge=1)
    """Largest number of requests in flight. [requests]"""
    max_retries: StrictInt = Field(3, ge=0)
    """Retries of a request after a transient failure. [tries]"""
    request_timeout_s: StrictFloat = Field(600.0, gt=0)
    """Deadline of one request. [s]"""
    max_restarts: StrictInt = Field(5, ge=0)
    """Restarts in a row of a lost server that the trainer started. [restarts]"""
    start_timeout_s: StrictFloat = Field(300.0, gt=0)
    """Deadline for a server to answer after its start, and for any server to come back when all are lost. [s]"""

    @property
    def is_partial(self) -> bool:
        """Whether a step may leave responses unfinished for the next one."""
        return self.extra_prompts > 0 or self.partial_after_s is not None

    @field_validator("addresses")
    @classmethod
    def _addresses_are_urls(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        return check_addresses(addresses)

    @field_validator("server_arguments")
    @classmethod
    def _arguments_are_free(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        for name in arguments:
            plain = name.lstrip("-").replace("_", "-")
            if plain in _OWN_OPTIONS:
                instead = f"set {_OWN_OPTIONS[plain]} instead" if _OWN_OPTIONS[plain] else "leave it out"
                raise ValueError(f"megacov sets the server option {plain} itself: {instead}.")
            if name.startswith("-"):
                raise ValueError(f"write the option without its dashes: {plain}.")
        return arguments

    @field_validator("host")
    @classmethod
    def _host_is_private(cls, host: str) -> str:
        if host == "localhost":
            return host
        if not is_ip_address(host):
            raise ValueError("give an IP address, such as 127.0.0.1, or localhost.")
        if not is_private(host):
            raise ValueError(
                "anybody who reaches a rollout server can replace its weights, so it listens on one private address "
                "only: set 127.0.0.1, or the machine's address in its private network."
            )
        return host

    @field_validator("top_k")
    @classmethod
    def _top_k_keeps_a_token(cls, top_k: int) -> int:
        if top_k == 0:
            raise ValueError("set it to -1 (the whole vocabulary) or to at least 1 token.")
        return top_k
