"""Rollouts: a client for SGLang and the embedded server, the embedded server itself, and groups of judged samples."""

from __future__ import annotations

from megacov.rollout.capabilities import Capabilities, refuse_unsafe, version_warning
from megacov.rollout.carried import CarriedGroup, dump_carried, load_carried
from megacov.rollout.client import RolloutClient
from megacov.rollout.fleet import Fleet, Member, ServersWaitError
from megacov.rollout.groups import SampledGroups, SamplingReport
from megacov.rollout.partial import PartialSampler
from megacov.rollout.sampler import Sampler
from megacov.rollout.server_process import EmbeddedServer, ServerProcess
from megacov.rollout.sglang_server import ServerKeys, SglangServer, make_keys
from megacov.rollout.wire import GenerateRequest

__all__ = [
    "Capabilities",
    "CarriedGroup",
    "EmbeddedServer",
    "Fleet",
    "GenerateRequest",
    "Member",
    "PartialSampler",
    "RolloutClient",
    "SampledGroups",
    "Sampler",
    "SamplingReport",
    "ServerKeys",
    "ServerProcess",
    "ServersWaitError",
    "SglangServer",
    "dump_carried",
    "load_carried",
    "make_keys",
    "refuse_unsafe",
    "version_warning",
]
