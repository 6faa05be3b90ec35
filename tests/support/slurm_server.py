"""The embedded server behind the options of SGLang's launcher, for jobs that start their own servers."""

from __future__ import annotations

import argparse
import os
import sys


def main() -> None:
    """Become `megacov serve`; what only SGLang knows is left out."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    for name in ("model-path", "dtype", "random-seed", "host", "port"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--config")  # SGLang reads keys from there
    found, _ = parser.parse_known_args()
    options = [
        f"--{name}={getattr(found, name.replace('-', '_'))}" for name in ("dtype", "random-seed", "host", "port")
    ]
    options += [] if found.config is None else [f"--keys-file={found.config}"]
    command = [sys.executable, "-m", "megacov", "serve", found.model_path, *options]
    os.execv(sys.executable, command)


if __name__ == "__main__":
    main()
