"""Rollouts: a client for SGLang and the embedded server, the embedded server itself, and groups of judged samples."""

from __future__ import annotations

from megacov.rollout.address_file import AddressFile
from megacov.rollout.capabilities import Capabilities, UnusableServerError, refuse_unsafe, version_warning
from megacov.rollout.carried import CarriedGroup, dump_carried, load_carried
from megacov.rollout.client import RolloutClient
from megacov.rollout.connection import RequestRefusedError, UnreachableError
from megacov.rollout.fleet import Fleet, ServersWaitError
from megacov.rollout.groups import SampledGroups, SamplingReport
from megacov.rollout.keys import ServerKeys, make_keys, read_keys
from megacov.rollout.member import Member
from megacov.rollout.partial import PartialSampler
from megacov.rollout.sampler import Sampler
from megacov.rollout.server_process import EmbeddedServer, ServerProcess
from megacov.rollout.sglang_server import SglangServer
from megacov.rollout.wire import GenerateRequest, Prefix

__all__ = [
    "AddressFile",
    "Capabilities",
    "CarriedGroup",
    "EmbeddedServer",
    "Fleet",
    "GenerateRequest",
    "Member",
    "PartialSampler",
    "Prefix",
    "RequestRefusedError",
    "RolloutClient",
    "SampledGroups",
    "Sampler",
    "SamplingReport",
    "ServerKeys",
    "ServerProcess",
    "ServersWaitError",
    "SglangServer",
    "UnreachableError",
    "UnusableServerError",
    "dump_carried",
    "load_carried",
    "make_keys",
    "read_keys",
    "refuse_unsafe",
    "version_warning",
]
