"""Sweeps: which runs there are, where they run, what came of them, and which setting was best. No torch here."""
