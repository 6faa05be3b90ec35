"""The routes of the Hugging Face Hub through which fsspec reads a data set, on the loopback, for one folder."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

DATASET_ID, COMMIT = "org/sums", "0123456789abcdef" * 2 + "01234567"


@contextmanager
def local_datasets(folder: Path) -> Iterator[str]:
    """Serve a folder as the data set `DATASET_ID`; gives the address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            about = f"/api/datasets/{DATASET_ID}"
            file = re.fullmatch(rf"/datasets/{DATASET_ID}/resolve/[^/]+/(.*)", path)
            tree = re.fullmatch(rf"{about}/tree/main(?:/(.*))?", path)
            if path in (about, f"{about}/revision/main"):
                self._send(json.dumps({"id": DATASET_ID, "sha": COMMIT, "siblings": []}).encode())
            elif tree:
                entries = (folder / (tree[1] or "")).rglob("*") if "recursive=true" in self.path else None
                every = sorted(entries or (folder / (tree[1] or "")).iterdir())
                self._send(json.dumps([_entry(each, folder) for each in every]).encode())
            elif file:
                self._send((folder / file[1]).read_bytes())
            else:
                self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

        def _send(self, content: bytes) -> None:
            part = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if part:
                content = content[int(part[1]) : int(part[2]) + 1]
            self.send_response(206 if part else 200)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _entry(path: Path, folder: Path) -> dict[str, Any]:
    name = path.relative_to(folder).as_posix()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": COMMIT}
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
