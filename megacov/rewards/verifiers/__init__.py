"""Megacov's own verifiers, one a file; `megacov.rewards.registry` imports a file when its verifier is asked for."""
