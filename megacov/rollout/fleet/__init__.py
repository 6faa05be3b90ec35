"""Several rollout servers as one: which of them serve, how a lost one comes back, and the processes that we start."""
