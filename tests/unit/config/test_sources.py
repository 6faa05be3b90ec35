"""Several sources: what follows from their settings, which rules they meet, and what a continuation may change."""

from __future__ import annotations

from typing import Any

import pytest

from megacov.config import RunConfig
from megacov.config.advice import prompts_repeat
from megacov.config.load import make_config
from megacov.config.resume import contradictions
from megacov.errors import ConfigError
from tests.support.config_values import values

SOURCES: list[dict[str, Any]] = [
    {"name": "gsm8k", "path": "g.jsonl", "weight": 3.0, "samples_per_prompt": 4, "temperature": 0.7},
    {"name": "choice.v2", "path": "c.jsonl", "verifier": "sum_pairs"},
]


def _config(*sources: dict[str, Any], rollout: dict[str, Any] | None = None, **sections: Any) -> RunConfig:
    batch = {"prompts_per_step": 10, "samples_per_prompt": 8} | (rollout or {})
    sections = {"batch": {"updates_per_rollout": 4}} | sections
    return make_config(values(data={"sources": list(sources or SOURCES)}, rollout=batch, **sections))


def test_sizes_and_temperatures_follow_from_the_sources() -> None:
    config = _config()
    assert config.shares == (0.75, 0.25)
    assert config.temperatures == (0.7, 1.0)
    assert config.group_sizes == (4, 8)
    assert config.mean_group_size == 5
    assert config.sequences_per_step == 80, "the most"
    assert config.sequences_per_update == 50 // 4, "the mean"
    assert config.fewest_sequences_per_update == 10
    assert (config.group_multiple, config.fewest_groups) == (1, 1)


def test_a_smaller_batch_of_unequal_groups_has_work_for_all() -> None:
    config = _config(parallel={"data": 3})
    # 4 optimizer steps over 3 ranks need 12 sequences, and the smallest groups have 4.
    assert (config.group_multiple, config.fewest_groups) == (1, 3)


def test_one_temperature_of_all_sources_is_that_of_the_run() -> None:
    config = _config(*({**source, "temperature": 0.6} for source in SOURCES))
    assert (config.temperatures, config.temperature) == (None, 0.6)
    plain = make_config(values(rollout={"temperature": 0.9, "samples_per_prompt": 4}))
    assert (plain.temperatures, plain.temperature, plain.group_sizes, plain.shares) == (None, 0.9, (4,), (1.0,))


def test_updates_divide_a_batch_of_equal_groups_only() -> None:
    """Sizes of optimizer steps differ by one sequence where groups differ in size."""
    assert _config(batch={"updates_per_rollout": 7}).batch.updates_per_rollout == 7
    same: list[dict[str, Any]] = [{**source, "samples_per_prompt": 4} for source in SOURCES]
    with pytest.raises(ConfigError, match=r"updates_per_rollout is 7, .* the 40 sequences .* x 4 samples_per_prompt\)"):
        _config(*same, batch={"updates_per_rollout": 7})


def test_the_smallest_groups_decide_whether_every_rank_has_work() -> None:
    assert _config(parallel={"data": 10})
    with pytest.raises(ConfigError, match=r"parallel.data is 11 .* at least 10 sequences \(40 in 4 updates\)"):
        _config(parallel={"data": 11})


def test_a_source_with_too_few_prompts_is_named() -> None:
    config = _config()
    assert prompts_repeat(config, 8, source=0) is None
    assert "source gsm8k of data.sources has 7 prompts" in (prompts_repeat(config, 7, source=0) or "")
    assert prompts_repeat(config, 3, source=1) is None
    assert prompts_repeat(config, 2, source=1) is not None
    weights = zip(SOURCES, (0.07, 0.93), strict=True)
    rounded = _config(*({**each, "weight": weight} for each, weight in weights), rollout={"prompts_per_step": 100})
    assert 100 * rounded.shares[0] > 7
    assert prompts_repeat(rounded, 7, source=0) is None


def _changed(before: RunConfig, after: RunConfig) -> dict[str, str]:
    return contradictions(before.model_dump(mode="json"), after)


@pytest.mark.parametrize(
    ("source", "change", "name"),
    [
        (0, {"weight": 2.0}, "data.sources.gsm8k.weight"),
        (0, {"temperature": 0.8}, "data.sources.gsm8k.temperature"),
        (1, {"samples_per_prompt": 2}, "data.sources.choice.v2.samples_per_prompt"),
        (1, {"verifier_arguments": {"path": 1}}, "data.sources.choice.v2.verifier_arguments.path"),
    ],
)
def test_a_changed_setting_of_a_source_is_named(source: int, change: dict[str, Any], name: str) -> None:
    sources = [{**each, **(change if place == source else {})} for place, each in enumerate(SOURCES)]
    assert list(_changed(_config(), _config(*sources))) == [name]


def test_another_list_of_sources_is_named_and_another_folder_is_not() -> None:
    found = _changed(_config(), _config(*reversed(SOURCES)))
    assert found == {"data.sources": "data.sources was ['gsm8k', 'choice.v2'] and is ['choice.v2', 'gsm8k']"}
    assert "data.sources" in _changed(_config(), _config(SOURCES[0]))
    assert _changed(_config(), _config(*({**source, "path": f"else/{source['path']}"} for source in SOURCES))) == {}
    assert "data.sources" in _changed(make_config(values()), _config())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"weight": 0.0}, r"data.sources\[0\].weight is 0.0: it must be a number, above 0"),
        ({"wieght": 1.0}, r"data.sources\[0\].wieght is not a setting: did you mean data.sources\[0\].weight\?"),
        (
            {"samples_per_prompt": 1},
            r"data.sources\[0\].samples_per_prompt is 1: it must be a whole number, at least 2",
        ),
        ({"path": None}, r"data.sources\[0\].path is "),
        ({"name": "choice.v2"}, "two sources have the same name"),
    ],
)
def test_a_mistake_in_a_source_is_named(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        _config({**SOURCES[0], **change}, SOURCES[1])


def test_a_source_is_a_section() -> None:
    for sources, name in ((["g.jsonl"], r"sources\[0\] is 'g.jsonl'"), (3, "sources is 3")):
        with pytest.raises(ConfigError, match=rf"data.{name}: it must be a .* keys such as name, path, weight"):
            make_config(values(data={"sources": sources}))
