"""Triton kernels of the radix select."""
