"""Rollouts: a client for SGLang and the embedded server, fleets of servers, and groups of judged samples."""

from __future__ import annotations

from megacov.rollout.client.capabilities import Capabilities, UnusableServerError, refuse_unsafe, version_warning
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.connection import RequestRefusedError, UnreachableError
from megacov.rollout.client.wire import GenerateRequest, Prefix
from megacov.rollout.fleet.address_file import AddressFile
from megacov.rollout.fleet.fleet import Fleet, ServersWaitError
from megacov.rollout.fleet.keys import ServerKeys, make_keys, read_keys
from megacov.rollout.fleet.member import Member
from megacov.rollout.fleet.membership import EMBEDDED_HEALTH_TIMEOUT_S, HEALTH_TIMEOUT_S, Membership
from megacov.rollout.fleet.server_process import EmbeddedServer, ServerProcess
from megacov.rollout.fleet.sglang_server import SglangServer
from megacov.rollout.sampling.carried import CarriedGroup, DecodeTokens, dump_carried, load_carried
from megacov.rollout.sampling.continued import ContinuedClient
from megacov.rollout.sampling.groups import SampledGroups, SamplingReport
from megacov.rollout.sampling.partial import PartialRollouts
from megacov.rollout.sampling.prompt_sampler import GroupSettings, PromptSampler, Verifier
from megacov.rollout.sampling.sampler import Sampler

__all__ = [
    "EMBEDDED_HEALTH_TIMEOUT_S",
    "HEALTH_TIMEOUT_S",
    "AddressFile",
    "Capabilities",
    "CarriedGroup",
    "ContinuedClient",
    "DecodeTokens",
    "EmbeddedServer",
    "Fleet",
    "GenerateRequest",
    "GroupSettings",
    "Member",
    "Membership",
    "PartialRollouts",
    "Prefix",
    "PromptSampler",
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
    "Verifier",
    "dump_carried",
    "load_carried",
    "make_keys",
    "read_keys",
    "refuse_unsafe",
    "version_warning",
]
