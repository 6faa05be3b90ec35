"""Rollouts as the trainer sees them: rank 0 talks to the servers, every rank receives the same batch."""
