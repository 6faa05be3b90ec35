"""Valid files and answers, from which the cases begin."""

from __future__ import annotations

import json
from pathlib import Path

from megacov.config import dump_config, load_config
from megacov.launch.node_report import NodeReport
from megacov.rollout import CarriedGroup, dump_carried
from megacov.types import Completion, Prompt, VersionSpan
from tests.support.families import MODELS, SIZES

ROOT = Path(__file__).parents[3]
CAPTURES = ROOT / "tests" / "captures" / "sglang_0.5.23"
TINY_RUN = ROOT / "yaml_configs" / "runs" / "tiny_kl_cov.yaml"


def dump(value: object) -> bytes:
    return json.dumps(value).encode()


def captured(pattern: str, part: str) -> tuple[bytes, ...]:
    """Requests or replies of a real server."""
    found = [json.loads(path.read_text()) for path in sorted(CAPTURES.glob(pattern))]
    wanted = [each["response"] if part == "response" else each["request"]["body"] for each in found]
    return tuple(dump(each) for each in wanted if isinstance(each, list | dict))


def models() -> tuple[bytes, ...]:
    return tuple(dump({"model_type": kind} | SIZES | fields) for kind, fields in MODELS.values())


JOB = (
    "JobId=7 JobName=a b=c JobState=RUNNING Reason=None Restarts=0 ExitCode=0:0 RunTime=00:10:00 TimeLimit=1-02:00:00 "
    "NodeList=node[0-1] NumNodes=2 Command=/runs/x.sbatch 0 WorkDir=/ StdOut=/runs/x-7.out\n"
)
TASK = JOB.replace("JobId=7", "JobId=9 ArrayJobId=7 ArrayTaskId=4")
HETEROGENEOUS = JOB.replace("JobId=7", "JobId=7 HetJobId=7 HetJobOffset=0") * 2
ENDED = JOB.replace("RUNNING", "FAILED").replace("ExitCode=0:0", "ExitCode=0:9").replace("NumNodes=2", "NumNodes=1K-1K")
LIST = "10 PENDING /runs/x.sbatch 0\n9 CANCELLED /runs/x.sbatch 0\n7+0 RUNNING /runs/x.sbatch\n5_3 RUNNING /y.sbatch"
PARTITIONS = """\
PartitionName=batch AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalNodes=1K
PartitionName=short AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=1-02:30:00 State=UP TotalNodes=4
PartitionName=old AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=01:00:00 State=DOWN TotalNodes=4"""
GPU = """<gpu><product_name>H100</product_name><fb_memory_usage><used>3000 MiB</used></fb_memory_usage>
<ecc_errors><volatile><dram_uncorrectable>9</dram_uncorrectable></volatile></ecc_errors>
<remapped_rows><remapped_row_pending>Yes</remapped_row_pending><remapped_row_failure>Yes</remapped_row_failure>
</remapped_rows></gpu>"""
GPUS = f"""<nvidia_smi_log><driver_version>570.86</driver_version>{GPU}{GPU.replace("3000", "10")}</nvidia_smi_log>
GPU 0: NVIDIA H100 80GB (UUID: GPU-0)
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
GPU 1: NVIDIA H100 80GB (UUID: GPU-1)
\t Link 0: 26.562 GB/s"""
REPORTS = "\n".join(
    line
    for node, other in (("node0", "node1"), ("node1", "node0"))
    for line in [
        *NodeReport(node, ("is hot",), "570", ("H100",) * 90, 0.1, {other: 2.0}, (other,)).to_lines(),
        *NodeReport(f"{node}b", (), "570", ("H100",), 0.1, {other: 0.1}).to_lines(),
    ]
)
COUNTS = dict.fromkeys(("step", "update", "skipped_in_a_row", "prompt_position", "adam_steps", "scheduler_steps"), 3)
ABOUT = {"format": 1, **COUNTS, "config": {"model": {"dtype": "float32"}}, "shape": {"a": 1}, "layout": {"b": 2}}
STATUS = {
    "format": 1,
    "logged": [{"step": step, "time": 1.7e9 + step, "values": {"a": 0.5, "b": "nan"}} for step in (1, 2)],
}
CARRIED = dump_carried(
    [
        CarriedGroup(
            Prompt(3, "a=", (5, 6), "b"), (Completion((5,), (-0.5,), "a", "stop", (VersionSpan("1", 0, 1),)),) * 2
        )
    ]
)
RESOLVED = dump_config(load_config(TINY_RUN)).encode()
ADDRESSES = "# servers\nhttp://10.0.0.5:30000\nhttps://[fd00::1]:3/ # rack 2\nhttp://server:30000\n"
ALIASES = "a: &a {x: 1, y: .inf}\nb: {<<: *a, y: [3e-4, ~, true, !!str 5]}\nc: [*a, *a]\nd: |\n  text\ne: '\\x'\n"
PROMPTS = b"".join(dump({"prompt": f"{each}=", "answer": each}) + b"\n" for each in (10, "11", 1.5))
