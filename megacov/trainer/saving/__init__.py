"""Checkpoints of a run: written, restored, and exported as Hugging Face weights."""
