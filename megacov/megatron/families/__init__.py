"""Model families: what of a Hugging Face model is where in Megatron. One file a family, one line in `registry.py`."""
