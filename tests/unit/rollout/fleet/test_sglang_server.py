"""How SGLang servers are started, with a command in their place that records its arguments."""

from __future__ import annotations

import json
import stat
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from megacov.errors import RolloutError
from megacov.rollout.fleet.keys import ServerKeys, make_keys
from megacov.rollout.fleet.sglang_server import SglangServer

COMMAND = """
import http.server, json, os, sys
options = sys.argv[1:]
value = lambda name: options[options.index("--" + name) + 1]
config = value("config")
told = {"options": options, "keys": json.load(open(config)), "config": config, "mode": os.stat(config).st_mode,
        "folder_mode": os.stat(os.path.dirname(config)).st_mode, "environment": dict(os.environ)}
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        if self.path == "/told":
            self.wfile.write(json.dumps(told).encode())
http.server.HTTPServer((value("host"), int(value("port"))), Handler).serve_forever()
"""
KEYS = ServerKeys("the-api-key", "the-admin-key")


def server(tmp_path: Path, *command: str, **options) -> SglangServer:
    return SglangServer(
        tmp_path / "model",
        number=1,
        keys=KEYS,
        log_path=tmp_path / "server_1.log",
        command=command or (sys.executable, "-c", COMMAND),
        **options,
    )


def test_arguments_environment_and_keys_of_a_server(tmp_path):
    (tmp_path / "server_1.log").touch(mode=0o644)
    arguments = {"device": "cpu", "disable-overlap-schedule": True, "enable-metrics": False, "cuda-graph-bs": (1, 2)}
    with server(tmp_path, arguments=arguments, environment={"X": "1"}, random_seed=7, dtype="bfloat16") as running:
        told = json.loads(httpx.get(f"{running.address}/told", trust_env=False).content)
        below = psutil.Process(running.pid).children(recursive=True)
        seen = [*psutil.Process(running.pid).cmdline(), *(word for process in below for word in process.cmdline())]
        assert len(below) == 1
        # Once the server generates, the keys are no longer on the disk.
        assert not Path(told["config"]).exists()
        assert (tmp_path / "server_1.log").stat().st_mode & 0o777 == 0o600
    assert not Path(told["config"]).parent.exists()
    assert told["keys"] == {"api-key": "the-api-key", "admin-api-key": "the-admin-key"}
    assert stat.S_IMODE(told["mode"]) == 0o600
    assert stat.S_IMODE(told["folder_mode"]) == 0o700
    assert not any(key in word for key in ("the-api-key", "the-admin-key") for word in seen)
    assert not any("the-a" in value for value in told["environment"].values())
    assert told["environment"]["X"] == "1"
    port = running.address.rpartition(":")[2]
    assert told["options"][2:] == [
        *("--device", "cpu", "--disable-overlap-schedule", "--cuda-graph-bs", "1", "2"),
        *("--model-path", str(tmp_path / "model"), "--dtype", "bfloat16", "--random-seed", "7"),
        *("--host", "127.0.0.1", "--port", port),
    ]
    assert psutil.wait_procs(below, timeout=10.0)[1] == []


def test_servers_get_ports_of_their_own(tmp_path):
    servers = [server(tmp_path) for _ in range(4)]
    try:
        for each in servers:
            each.start()
        assert len({each.address for each in servers}) == 4
    finally:
        for each in servers:
            each.stop()


def test_a_host_of_another_machine_is_named(tmp_path):
    with pytest.raises(RolloutError, match=r"rollout.host is 192.0.2.77, .* \(Cannot assign requested address\): set"):
        server(tmp_path, host="192.0.2.77").start()


def test_the_log_is_appended_to_and_only_its_end_is_read(tmp_path):
    log = tmp_path / "server_1.log"
    log.write_bytes(b"what failed\n" + b"x\n" * 50_000)
    for _ in range(2):
        ending = server(tmp_path, sys.executable, "-c", "print('new life'); raise SystemExit(7)")
        with pytest.raises(RolloutError, match="ends with: new life$"), ending:
            pass
    assert log.read_text().startswith("what failed\nx\n") and log.read_text().count("new life") == 2


def test_keys_are_fresh_and_not_shown():
    first, second = make_keys(), make_keys()
    assert len({first.api, first.admin, second.api, second.admin}) == 4
    assert min(map(len, (first.api, first.admin))) == 64
    assert first.api not in repr(first) and first.admin not in repr(first)


def test_a_server_that_dies_at_the_start_is_reported_with_its_last_line(tmp_path):
    with (
        pytest.raises(RolloutError, match="SGLang server 1 ended with exit code 7; its log .* ends with: no weights"),
        server(tmp_path, sys.executable, "-c", "print('no weights'); raise SystemExit(7)"),
    ):
        pass
    with pytest.raises(RolloutError, match=r"no-such-python cannot be started \(No such file"):
        server(tmp_path, "no-such-python").__enter__()


def test_a_server_that_is_too_slow_is_stopped(tmp_path):
    slow = server(tmp_path, sys.executable, "-c", "import time; time.sleep(600)", start_timeout_s=0.5)
    with pytest.raises(RolloutError, match=r"SGLang server 1 did not generate within 0.5 s; raise"), slow:
        pass
    assert slow.pid is None
