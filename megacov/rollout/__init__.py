"""Rollouts: a client for SGLang and the embedded server, the embedded server itself, and groups of judged samples."""

from __future__ import annotations

from megacov.rollout.address_file import AddressFile
from megacov.rollout.capabilities import Capabilities, refuse_unsafe, version_warning
from megacov.rollout.client import RolloutClient
from megacov.rollout.fleet import Fleet, ServersWaitError
from megacov.rollout.keys import ServerKeys, make_keys, read_keys
from megacov.rollout.member import Member
from megacov.rollout.sampler import SampledGroups, Sampler, SamplingReport
from megacov.rollout.server_process import EmbeddedServer, ServerProcess
from megacov.rollout.sglang_server import SglangServer
from megacov.rollout.wire import GenerateRequest, Prefix

__all__ = [
    "AddressFile",
    "Capabilities",
    "EmbeddedServer",
    "Fleet",
    "GenerateRequest",
    "Member",
    "Prefix",
    "RolloutClient",
    "SampledGroups",
    "Sampler",
    "SamplingReport",
    "ServerKeys",
    "ServerProcess",
    "ServersWaitError",
    "SglangServer",
    "make_keys",
    "read_keys",
    "refuse_unsafe",
    "version_warning",
]
