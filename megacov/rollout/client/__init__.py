"""One client for every rollout server, SGLang's and the embedded one: requests, replies and failures."""
