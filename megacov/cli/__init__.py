"""The `megacov` command: one file a verb."""
