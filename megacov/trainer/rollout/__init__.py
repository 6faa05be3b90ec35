"""Rollouts on the trainer's side: rank 0 talks to the servers, and every rank receives the same batch."""
