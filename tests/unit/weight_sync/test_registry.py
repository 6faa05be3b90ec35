"""A transport is its class and its traits: everything else follows from these."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from megacov.config import load_config
from megacov.config.rules import check_rules
from megacov.config.transports import TRANSPORTS, PauseMode, TransportTraits, choose_transport
from megacov.config.weight_sync import TransportName
from megacov.embedded_server import bodies
from megacov.errors import ConfigError
from megacov.rollout import Capabilities
from megacov.weight_sync import DiskTransport, SessionTransport, WeightTransport, make_transport, why_out_of_reach
from megacov.weight_sync.registry import transport_class
from tests.support.sglang_servers import RUN


class Nothing(WeightTransport):
    """Pushes nothing."""

    @classmethod
    def from_config(cls, config: Any, folder: Any, clients: Any, *, run: Any) -> Nothing:
        return cls()

    def push(self, version: Any, named_tensors: Any, *, label: Any = None) -> Any:
        raise AssertionError


def test_the_settings_know_every_transport():
    assert get_args(TransportName) == tuple(TRANSPORTS)


@pytest.mark.parametrize("name", TRANSPORTS)
def test_traits_are_those_of_the_class(name):
    found, traits = transport_class(name), TRANSPORTS[name]
    assert issubclass(found, SessionTransport) == traits.in_buckets
    assert (found.bring_up_to_date is not WeightTransport.bring_up_to_date) == traits.keeps_copy


def test_a_run_gets_the_transport_that_it_names(tmp_path):
    config = load_config(RUN, ("weight_sync.transport=disk", "weight_sync.keep=3"))
    transport = make_transport(config, tmp_path, [], run=None)
    assert isinstance(transport, DiskTransport) and transport._keep == 3
    assert transport._directory == tmp_path / "weights"


def test_a_new_transport_needs_its_class_and_its_traits_alone(monkeypatch):
    traits = TransportTraits(implementation=f"{__name__}:Nothing", summary="", loopback_only=True, in_buckets=True)
    monkeypatch.setitem(TRANSPORTS, "nothing", traits)
    config = load_config(RUN)
    sync = config.weight_sync.model_copy(update={"transport": "nothing"})
    config = config.model_copy(update={"weight_sync": sync})
    assert isinstance(make_transport(config, Path(), [], run=None), Nothing)
    assert why_out_of_reach(sync, Capabilities(), "http://127.0.0.1:1") is None
    why = why_out_of_reach(sync, Capabilities(), "http://192.0.2.7:1")
    assert why is not None and "transport is nothing and http://192.0.2.7:1 is not on the loopback" in why
    check_rules(config)
    embedded = load_config("yaml_configs/runs/tiny_kl_cov.yaml").model_copy(update={"weight_sync": sync})
    with pytest.raises(ConfigError, match="rollout.engine is embedded, whose server does not support it: .*=disk or"):
        check_rules(embedded)
    late = config.model_copy(update={"parallel": config.parallel.model_copy(update={"timeout_s": 1.0})})
    with pytest.raises(ConfigError, match="ranks would fail before"):
        check_rules(late)


def test_a_sentence_names_every_transport_that_would_do():
    assert choose_transport(lambda traits: traits.keeps_copy) == "weight_sync.transport=disk"
    assert choose_transport(lambda traits: not traits.loopback_only) == "weight_sync.transport to disk or broadcast"


def test_a_server_that_cannot_take_shards_is_refused_in_one_sentence():
    sync = load_config(RUN).weight_sync.model_copy(update={"transport": "reshard"})
    able = Capabilities(version="0.5.23", loaders=("other.loader", "megacov_receiver.receive"))
    assert why_out_of_reach(sync, able, "http://127.0.0.1:1") is None
    for change, words in (
        ({"loaders": ("other.loader",)}, "was started without --custom-weight-loader megacov_receiver.receive: start"),
        ({"version": "0.5.22"}, "runs SGLang 0.5.22, where it was never tried: install 0.5.23"),
        ({"quantization": "fp8"}, "stores its weights by fp8"),
        ({"has_draft": True}, "runs a draft model"),
        ({"other_parallel": 2}, "has 2 data-parallel copies or pipeline stages"),
    ):
        why = why_out_of_reach(sync, replace(able, **change), "http://127.0.0.1:1")
        assert why is not None and words in why and "weight_sync.transport=" in why
        assert why.count(". ") == 0


def test_trainer_and_embedded_server_mean_the_same_pause_modes():
    assert get_args(PauseMode) == get_args(bodies.PauseMode)
