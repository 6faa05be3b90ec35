"""Capabilities follow from the version; the client obeys them, and refuses or warns of some versions."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from megacov.errors import RolloutError
from megacov.rollout.client.capabilities import (
    Capabilities,
    read_capabilities,
    refuse_unsafe,
    version_warning,
)
from megacov.rollout.client.client import RolloutClient
from megacov.rollout.client.wire import GenerateRequest
from tests.support.scripted_server import Reply, in_turn, scripted_server

CAPTURES = Path(__file__).parents[3] / "captures"


def of(version: str, **info: bool) -> Capabilities:
    return read_capabilities({"version": version, **info}, server="S")


@pytest.mark.parametrize(
    ("name", "first"),
    [
        ("pause_takes_body", "0.5.6"),
        ("flattened_buckets", "0.5.6"),
        ("version_spans", "0.5.19"),
        ("weight_sessions", "0.5.21"),
    ],
)
def test_each_capability_begins_with_its_version(name, first):
    before = f"0.5.{int(first.rpartition('.')[2]) - 1}"
    assert [getattr(of(version), name) for version in (before, f"{before}.post2", first, "0.5.23", "0.6.0")] == [
        *(False, False),
        *(True, True, True),
    ]


def test_a_server_follows_seeds_if_it_reports_deterministic_inference():
    assert not of("0.5.23").request_seeds
    assert of("0.5.23", enable_deterministic_inference=True).request_seeds


def test_the_info_of_a_real_server_is_read():
    info = json.loads((CAPTURES / "sglang_0.5.23" / "get_server_info.json").read_text())["response"]
    assert read_capabilities(info, server="S") == Capabilities(request_seeds=False, watchdog_s=300.0)


def test_what_matters_to_shards_is_read():
    info = {
        "custom_weight_loader": ["a.b", "c.d"],
        "ep_size": 4,
        "quantization": "fp8",
        "speculative_algorithm": "EAGLE",
    }
    found = of("0.5.23", **info)
    assert (found.loaders, found.expert_parallel, found.quantization, found.has_draft) == (
        ("a.b", "c.d"),
        4,
        "fp8",
        True,
    )
    orders = [("cuda", "auto"), ("cuda", "flashinfer_trtllm"), ("cuda", "triton"), ("cpu", "auto")]
    found = [of("0.5.23", device=device, moe_runner_backend=runner).reorders_experts for device, runner in orders]
    assert found == [True, True, False, False]
    assert of("0.5.23", custom_weight_loader=None) == of("0.5.23", custom_weight_loader=[1], quantization=None)


@pytest.mark.parametrize("value", [None, 0, -1, True, "300", float("inf"), float("nan")])
def test_a_server_without_a_readable_watchdog_is_taken_to_have_none(value):
    assert of("0.5.23", watchdog_timeout=value).watchdog_s is None


@pytest.mark.parametrize(
    ("info", "sentence"),
    [
        ({}, "version null, which is not a version number"),
        ({"version": "new"}, "'new', which is not a version number"),
        ({"version": "0.5.4"}, "0.5.5"),
    ],
)
def test_a_version_that_is_unreadable_or_too_old_is_refused(info, sentence):
    with pytest.raises(RolloutError, match=sentence):
        read_capabilities(info, server="S")


def test_an_unsafe_version_is_refused_with_its_cves():
    sentence = r"S runs SGLang 0.5.9, .*CVE-2026-3059, CVE-2026-3060.* install 0.5.10 or newer\."
    with pytest.raises(RolloutError, match=sentence):
        refuse_unsafe("0.5.9", server="S")
    refuse_unsafe("0.5.10", server="S")
    assert "CVE-2026-3059" in (version_warning("0.5.9.post1", server="S") or "")


def test_an_untested_version_gives_a_warning():
    assert version_warning("0.5.24", server="S") == "S runs SGLang 0.5.24; megacov is tested up to 0.5.23."
    assert [version_warning(version, server="S") for version in ("0.5.10", "0.5.23", "0.5.23.post1")] == [None] * 3


def test_a_server_before_0_5_6_is_paused_without_a_body():
    async def script(call) -> Reply:
        return Reply({"version": "0.5.5"}) if "info" in call.path else Reply({})

    async def run():
        async with scripted_server(script) as (address, calls), RolloutClient(address, vocab_size=4) as client:
            await client.learn_capabilities()
            await client.pause("retract")
            await client.resume()
            return [(call.path, call.body) for call in calls]

    assert asyncio.run(run())[1:] == [("/pause_generation", None), ("/continue_generation", None)]


def test_a_seed_that_would_have_no_effect_is_not_sent():
    async def run():
        info = Reply({"version": "0.5.23", "enable_deterministic_inference": False})
        async with scripted_server(in_turn(info)) as (address, calls), RolloutClient(address, vocab_size=9) as client:
            await client.learn_capabilities()
            with pytest.raises(RolloutError, match="would ignore the seed of a request; .* or send none"):
                await client.generate(GenerateRequest(input_ids=(5,), n=1, max_new_tokens=4, sampling_seed=1))
            return len(calls)

    assert asyncio.run(run()) == 1
