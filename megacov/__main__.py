"""`python -m megacov`, the same as the `megacov` command."""

from __future__ import annotations

from megacov.cli.main import main

if __name__ == "__main__":
    main()
