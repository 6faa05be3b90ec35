"""Triton kernels of the passes over a shard of the logits, and loops for a CPU; dispatch.py decides where they run."""
