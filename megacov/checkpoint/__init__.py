"""Checkpoint folders that exist whole or not at all and whose every byte can be checked, and the lock of a run.

This package does not know the content of the files. No torch.
"""

from __future__ import annotations

from megacov.checkpoint.lock import Holder, RunLock, find_holder
from megacov.checkpoint.manifest import (
    MANIFEST_NAME,
    FileRecord,
    Manifest,
    check_file,
    check_files,
    read_manifest,
    record_file,
    write_manifest,
)
from megacov.checkpoint.store import CheckpointStore, Found

__all__ = [
    "MANIFEST_NAME",
    "CheckpointStore",
    "FileRecord",
    "Found",
    "Holder",
    "Manifest",
    "RunLock",
    "check_file",
    "check_files",
    "find_holder",
    "read_manifest",
    "record_file",
    "write_manifest",
]
