"""Running servers, as a configuration names them."""

from __future__ import annotations

import asyncio
import resource
from pathlib import Path

import pytest

from megacov.config import load_config
from megacov.rollout import RolloutClient
from megacov.trainer.rollout import servers as rollout_servers
from megacov.trainer.rollout.servers import allow_open_files, find_keys, make_fleet, make_servers
from megacov.trainer.run_folder import with_absolute_paths
from tests.support.scripted_server import Reply, in_turn, scripted_server


def test_servers_of_an_address_file_get_the_keys_of_a_keys_file(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("keys.yaml").touch(mode=0o600)
    Path("keys.yaml").write_text("api-key: one\nadmin-api-key: two\n")

    async def nothing(_client: RolloutClient) -> None:
        return

    async def run() -> None:
        async with scripted_server(in_turn(Reply({}))) as (address, calls):
            Path("servers.txt").write_text(f"{address}\n")
            files = ("rollout.addresses_file=servers.txt", "rollout.keys_file=keys.yaml")
            relative = load_config(Path(__file__).parents[4] / "yaml_configs/runs/tiny_kl_cov.yaml",
                                   ("rollout.engine=sglang", "weight_sync.directory=shared", *files))  # fmt: skip
            config = with_absolute_paths(relative)
            assert config.rollout.addresses_file == tmp_path / "servers.txt"
            assert config.weight_sync.directory == tmp_path / "shared"
            keys = find_keys(config)
            assert make_servers(config, tmp_path, keys) == []
            fleet = make_fleet(config, [], keys, vocab_size=16, bring_up_to_date=nothing)
            assert [client.address for client in fleet.membership.serving] == [address]
            assert fleet.membership.address_file is not None and fleet.membership.address_file.read() == (address,)
            await fleet.membership.serving[0].model_info()
            await fleet.membership.serving[0].flush_cache()
            await fleet.membership.aclose()
            assert [call.headers["authorization"] for call in calls] == ["Bearer one", "Bearer two"]

    asyncio.run(run())


def test_without_keys_none_are_sent() -> None:
    config = load_config(
        "yaml_configs/runs/tiny_kl_cov.yaml", ("rollout.engine=sglang", "rollout.addresses=[http://10.0.0.5:1]")
    )
    assert find_keys(config).api is None
    assert find_keys(config).admin is None


def test_the_limit_of_open_files_is_raised_or_a_warning_printed(monkeypatch, capsys) -> None:
    config = load_config("yaml_configs/runs/tiny_kl_cov.yaml", ("rollout.max_concurrency=500",))
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        allow_open_files(config)
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(before[1], 4096)
        assert capsys.readouterr().out == ""
        resource.setrlimit(resource.RLIMIT_NOFILE, (600, before[1]))
        monkeypatch.setattr(rollout_servers, "_OPEN_FILES", 600)
        allow_open_files(config)
        assert "500 requests may be under way, and this process may open 600 files" in capsys.readouterr().out
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("host", "has_keys"), [("127.0.0.1", False), ("localhost", False), ("10.0.0.5", True)])
def test_an_embedded_server_that_others_reach_gets_keys(host: str, has_keys: bool, tmp_path: Path) -> None:
    config = load_config("yaml_configs/runs/tiny_kl_cov.yaml", [f"rollout.host={host}"])
    keys = find_keys(config)
    assert (keys.api is not None) == (keys.admin is not None) == has_keys
    # `make_servers` would try to listen, and this machine does not have that address.
    server = rollout_servers._embedded(config, tmp_path, keys)
    assert (server._keys is keys) == has_keys
