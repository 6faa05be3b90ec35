"""Model families: how Hugging Face weights map to Megatron. One file per family and one line in `registry.py`."""
