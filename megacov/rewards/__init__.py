"""Verifiers, and the processes that run them. Import from the modules: a worker process needs few of them."""
