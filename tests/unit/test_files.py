"""Small files are replaced whole, and nothing in the package writes one in another way."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from megacov.files import write_atomically

PACKAGE = Path(__file__).parents[2] / "megacov"

# Files that are not small, are appended to, or are only a name: with the reason why they need not be replaced whole.
WRITES_ELSEWHERE = {
    "files.py": "the function itself",
    "cli/deep_check.py": "a pipe",
    "launch/output.py": "standard output itself",
    "monitor/event_files.py": "files of events, whose bytes are cut and then renamed",
    "launch/heartbeat.py": "stacks, written by faulthandler when a rank hangs",
    "launch/node_report.py": "a file to measure the disk with",
    "launch/node_ranks.py": "created once and for all, by O_EXCL",
    "rewards/reasoning_gym/generate.py": "a pipe",
    "rewards/sandbox/namespaces.py": "files of the kernel",
    "rewards/sandbox/programs.py": "pipes, inside of the sandbox",
    "rollout/fleet/keys.py": "with a mode of its own, before the process that reads it starts",
    "rollout/fleet/sglang_server.py": "in a new temporary folder, before the process that reads it starts",
    "weight_sync/model_files.py": "in a temporary folder that is renamed as a whole",
    "weight_sync/snapshot.py": "in a temporary folder that is renamed as a whole",
}


def _writes(path: Path) -> bool:
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute | ast.Name):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        modes = [each.value for each in node.args if isinstance(each, ast.Constant)]
        if name in ("write_text", "write_bytes") or (name in ("open", "fdopen") and {"w", "wb"} & set(modes)):
            return True
    return False


def test_every_small_file_is_written_by_one_function():
    found = {path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py") if _writes(path)}
    assert found == WRITES_ELSEWHERE.keys()


@pytest.mark.parametrize("is_synced", [False, True])
def test_a_file_is_replaced_whole(tmp_path, is_synced):
    path = tmp_path / "file"
    write_atomically(path, "old", is_synced=is_synced)
    with path.open() as opened:
        write_atomically(path, "n\u00f6w", is_synced=is_synced)
        assert opened.read() == "old"
    assert path.read_text(encoding="utf-8") == "n\u00f6w" and os.listdir(tmp_path) == ["file"]


def test_the_old_content_stays_if_writing_fails(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    (tmp_path / "tmp_file").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["file"]
