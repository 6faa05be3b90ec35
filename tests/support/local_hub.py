"""The routes of the Hugging Face Hub that a download uses, on the loopback, for one folder as one commit of a model."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

MODEL_ID, COMMIT = "org/tiny-model", "0123456789abcdef" * 2 + "01234567"


@contextmanager
def local_hub(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as `MODEL_ID`; gives the address, and the names of the files that were fetched so far."""
    fetched: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def log_message(self, *_: object) -> None:
            pass

        def _answer(self, *, with_body: bool) -> None:
            path = urlsplit(self.path).path
            if path in (f"/api/models/{MODEL_ID}", f"/api/models/{MODEL_ID}/revision/main"):
                self._send(json.dumps({"id": MODEL_ID, "sha": COMMIT, "siblings": []}).encode(), with_body=with_body)
            elif path == f"/api/models/{MODEL_ID}/tree/{COMMIT}":
                self._send(json.dumps(_tree(folder)).encode(), with_body=with_body)
            elif path.startswith(f"/{MODEL_ID}/resolve/{COMMIT}/"):
                name = path.partition(f"/{COMMIT}/")[2]
                if with_body:
                    fetched.append(name)
                self._send((folder / name).read_bytes(), with_body=with_body)
            else:
                self.send_error(404)

        def _send(self, content: bytes, *, with_body: bool) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if with_body:
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", fetched
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(folder: Path) -> list[dict[str, object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]
