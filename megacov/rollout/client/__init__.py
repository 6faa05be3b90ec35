"""One client for every rollout server, SGLang's and the embedded one: what is sent, what comes back, what failed."""
