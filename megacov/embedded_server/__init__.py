"""The embedded rollout server: transformers on a CPU behind the part of SGLang's HTTP contract that a trainer uses."""
