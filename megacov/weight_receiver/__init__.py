"""Code of ours that runs inside of a rollout server, which imports it by PYTHONPATH: torch is all that it needs."""
