"""What `megacov check` says of a push of weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.cli.check_plan import plan_run
from megacov.cli.push_plan import push_rows
from megacov.config import load_config
from megacov.errors import ConfigError

ROOT = Path(__file__).parents[3]
RUNS = ROOT / "yaml_configs" / "runs"
READY = sorted(path for path in RUNS.glob("qwen*_kl_cov*n.yaml"))
ONE = RUNS / "qwen2.5_32b_kl_cov_8n.yaml"
MOE = ("model.config_file=benchmarks/models/qwen3-30b-a3b/config.json", "parallel.tensor=4", "parallel.expert=4")


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def shown(path: Path, *overrides: str) -> dict[str, tuple[str, str]]:
    return {name: (value, remark) for name, value, remark in push_rows(plan_run(load_config(path, overrides)))}


def gib(value: str) -> float:
    return float(value.removesuffix(" GiB"))


@pytest.mark.parametrize("path", READY, ids=lambda path: path.stem)
def test_a_ready_run_would_move_the_share_of_a_server_gpu(path: Path) -> None:
    rows, plan = shown(path), plan_run(load_config(path))
    assert plan.request is not None and plan.server is not None
    assert gib(rows["shard to shard"][0]) == pytest.approx(gib(rows["all weights"][0]) / plan.request.tensor, rel=0.01)
    # Servers keep padded rows too, and nothing else that they do not receive.
    assert gib(rows["shard to shard"][0]) == pytest.approx(plan.server.weights / 2**30, abs=0.051)
    moved = gib(rows["shard to shard"][0]) * plan.placement.servers * plan.request.tensor
    mean = moved / plan.layout.world_size
    assert mean * 0.99 <= gib(rows["busiest sender"][0]) <= mean * 1.1
    assert rows["staging, trainer"][0] == rows["staging, server"][0] == "1.0 GiB"


def test_messages_follow_the_size_of_a_bucket() -> None:
    few, many = shown(ONE, "weight_sync.bucket_bytes=1000000000"), shown(ONE, "weight_sync.bucket_bytes=10000000")
    assert int(few["messages"][0].replace(",", "")) * 20 < int(many["messages"][0].replace(",", ""))


def test_runs_that_gather_are_shown_the_one_line_that_changes_it() -> None:
    for path in READY:
        rows, reshard = shown(path), shown(path, "weight_sync.transport=reshard")
        assert rows["shard to shard"][0] == reshard["shard to shard"][0]
        assert rows["shard to shard"][1].endswith("(weight_sync.transport=reshard)")
        assert "weight_sync.transport" not in reshard["shard to shard"][1]


COLOCATED = ("rollout.colocated=true", "rollout.max_staleness=0", "rollout.server_arguments.tp-size=2")
ON_ONE_MACHINE = ("cluster.nodes=1", "parallel.pipeline=1", "parallel.data=1", "parallel.tensor=8")


@pytest.mark.parametrize("transport", ["ipc", "disk"])
def test_servers_on_the_trainers_gpus_are_offered_what_the_rules_allow(transport: str) -> None:
    place = (*COLOCATED, *ON_ONE_MACHINE)
    rows = shown(ONE, *place, f"weight_sync.transport={transport}")
    assert rows["own shards"][1].endswith("(weight_sync.transport=ipc_shards)")
    with pytest.raises(ConfigError, match="weight_sync.transport is reshard: NCCL takes no two ranks on one GPU"):
        load_config(ONE, [*place, "weight_sync.transport=reshard"])
    taken = shown(ONE, *place, "weight_sync.transport=ipc_shards")
    assert taken["own shards"][0] == rows["own shards"][0]
    assert not any("weight_sync.transport" in remark for _, remark in taken.values())


def test_no_transport_of_shards_is_offered_where_the_rules_refuse_all() -> None:
    rows = shown(ONE, *COLOCATED, "cluster.nodes=4", "weight_sync.transport=disk")
    assert rows["shard to shard"][0] == "none"
    assert not any("weight_sync.transport" in remark for _, remark in rows.values())
    for name in ("reshard", "ipc_shards"):
        with pytest.raises(ConfigError, match=f"weight_sync.transport is {name}"):
            load_config(ONE, [*COLOCATED, f"weight_sync.transport={name}"])


def test_on_one_machine_only_what_another_rank_holds_is_passed() -> None:
    small = ("cluster.nodes=2", "parallel.pipeline=1", "parallel.data=1", "weight_sync.transport=ipc_shards")
    equal = shown(ONE, *small, "parallel.tensor=2", "rollout.server_arguments.tp-size=2")
    half = shown(ONE, *small, "parallel.tensor=8", "rollout.server_arguments.tp-size=4")
    assert equal["own shards"][0] == "30.5 GiB" and equal["passed"][0] == "0.0 GiB"
    assert half["own shards"][0] == "15.3 GiB" and gib(half["passed"][0]) == pytest.approx(30.5, abs=0.1)
    assert half["staging, trainer"][0] == "1.5 GiB"


def test_experts_may_be_on_other_ranks_of_a_server() -> None:
    by_columns = shown(ONE, *MOE, "parallel.data=8", "rollout.server_arguments.tp-size=4")
    whole = shown(ONE, *MOE, "parallel.data=8", "rollout.server_arguments={tp-size: 4, ep-size: 4}")
    assert by_columns["shard to shard"][0] == whole["shard to shard"][0]
    with pytest.raises(ConfigError, match="ep-size is 3 and tp-size 4"):
        shown(ONE, *MOE, "parallel.data=8", "rollout.server_arguments={tp-size: 4, ep-size: 3}")


@pytest.mark.parametrize(
    ("path", "overrides"),
    [
        (RUNS / "tiny_kl_cov_sglang.yaml", ()),
        (ONE, ("rollout.server_arguments={tp-size: 2, dp-size: 2}", "weight_sync.transport=disk")),
    ],
)
def test_where_no_plan_is_possible_nothing_is_shown(path: Path, overrides: tuple[str, ...]) -> None:
    assert shown(path, *overrides) == {}
