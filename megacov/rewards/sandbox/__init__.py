"""Runs programs that nobody has read. All files except sandbox.py also run inside, with the standard library only."""
