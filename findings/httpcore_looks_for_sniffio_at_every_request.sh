#!/bin/sh
# httpcore 1.0.9: the cost of a package that is not installed.
#
# Expected: whether sniffio is there is found out once.
# Seen:     every lock and semaphore of a request imports sniffio anew, which anyio no longer brings: four failing
#           imports a request, each a search through the whole path. That is about a fifth of the client's time.
# So:       the client of rollout servers uses aiohttp, which needs a fifth of the CPU time that httpx did.
#
# Run with: sh findings/httpcore_looks_for_sniffio_at_every_request.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install httpx==0.28.1 httpcore==1.0.9 anyio==4.16.0
cat >"$folder/measure.py" <<'PYTHON'
import asyncio
import importlib.util
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx


class Answers(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


class Counter:
    """Sees every search for a module that is not imported yet."""

    looked = 0

    def find_spec(self, name, path=None, target=None):
        Counter.looked += name == "sniffio"


async def main(url):
    async with httpx.AsyncClient(trust_env=False) as client:
        await client.get(url)
        Counter.looked, start = 0, time.thread_time()
        for _ in range(500):
            await client.get(url)
        cpu_ms = (time.thread_time() - start) * 1e3 / 500
    return Counter.looked / 500, cpu_ms


server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
threading.Thread(target=server.serve_forever, daemon=True).start()
is_installed = importlib.util.find_spec("sniffio") is not None
sys.meta_path.insert(0, Counter())
looked, cpu_ms = asyncio.run(main(f"http://127.0.0.1:{server.server_port}/"))
print(f"sniffio installed: {is_installed}; searches a request: {looked:g}; client: {cpu_ms:.2f} ms CPU a request")
assert (looked >= 3) == (not is_installed), "httpcore looks once now"
PYTHON
"$folder/venv/bin/python" "$folder/measure.py"
"$folder/venv/bin/pip" --quiet install sniffio==1.3.1
"$folder/venv/bin/python" "$folder/measure.py"
