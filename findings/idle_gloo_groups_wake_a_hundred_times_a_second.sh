#!/bin/sh
# torch 2.13.0: the cost of a gloo process group that nobody uses.
#
# Expected: a group without a message costs nothing.
# Seen:     each group has a thread of its own, which wakes about 100 times a second and takes about 1 ms of CPU time a
#           second. A group of one rank does so too. On a busy machine it wakes less often, so run this on an idle one.
# So:       megacov makes two gloo groups of its own; 18 of the 20 on a CPU are Megatron-Core's (docs/performance.md).
#
# Run with: sh findings/idle_gloo_groups_wake_a_hundred_times_a_second.sh [python3.11]. Needs a network or a package mirror.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${1:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" --quiet install torch==2.13.0 numpy==2.4.6
cat >"$folder/measure.py" <<'PYTHON'
import os
import time

import torch.distributed as dist


def wakes():
    """Times that threads of gloo gave up the processor of their own accord, and how many there are."""
    found = []
    for thread in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{thread}/status") as file:
            fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
        if fields["Name"].startswith("gloo_tcp"):
            found.append(int(fields["voluntary_ctxt_switches"]))
    return sum(found), len(found)


dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
groups = [dist.new_group([0]) for _ in range(19)]
time.sleep(1)
(before, threads), cpu = wakes(), time.process_time()
time.sleep(10)
(after, _), cpu = wakes(), time.process_time() - cpu
rate = (after - before) / 10 / threads
print(f"{len(groups) + 1} groups, {threads} threads, each wakes {rate:.0f} times a second; {cpu / 10 * 1e3:.0f} ms of CPU a second")
if threads != len(groups) + 1 or not 80 < rate < 120:
    raise SystemExit("torch behaves otherwise now")
PYTHON
"$folder/venv/bin/python" "$folder/measure.py"
