"""Triton kernels of the passes over a shard of the logits; dispatch.py decides where they run."""
