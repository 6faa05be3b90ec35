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
    """A model of every family, and some that are nearly right."""
    valid = [{"model_type": kind} | SIZES | fields for kind, fields in MODELS.values()]
    llama, moe = valid[0], {"model_type": "qwen3_moe"} | SIZES | MODELS["qwen3_moe"][1]
    experts = {name: value for name, value in moe.items() if name != "num_experts"} | {"num_local_experts": 4}
    window = {"sliding_window": 8, "max_window_layers": 2, "use_sliding_window": True}
    kinds = ["full_attention"] * 4
    rope = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 2.0, "original_max_position_embeddings": 4}
    nearly = [
        llama | {"model_type": "gpt2"},
        llama | {"hidden_size": 4, "head_dim": None},
        llama | {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e4},
        llama | {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}},
        llama | {"rope_parameters": rope | {"partial_rotary_factor": 0.5}},
        llama | {"rope_parameters": rope | {"rope_theta": 1.0}},
        llama | {"rope_parameters": 5, "attention_bias": True},
        llama | {"attention_bias": True},
        llama | {"layer_types": 7},
        llama | {"layer_types": kinds},
        valid[3] | window,
        valid[3] | window | {"layer_types": ["sliding_attention", *kinds[1:]]},
        valid[3] | window | {"max_window_layers": "2"},
        {name: value for name, value in llama.items() if name != "vocab_size"},
    ]
    return tuple(map(dump, [*valid, experts, *nearly]))


def requests() -> tuple[bytes, ...]:
    """Requests to /generate: those of a client, and some that are nearly right."""
    one = {"input_ids": [5, 6], "sampling_params": {"max_new_tokens": 4}}
    two = one | {"input_ids": [[5, 6], [7]]}
    odd: list[dict[str, object]] = [
        {"temperature": -1.0},
        {"top_p": 0.0},
        {"min_p": 2.0},
        {"top_k": 0},
        {"top_k": 10**20},
        {"max_new_tokens": -1},
        {"max_new_tokens": 63},
        {"n": 0},
        {"n": 5000},
        {"sampling_seed": 10**20},
        {"stop_token_ids": [-1]},
        {"stop": ""},
        {"stop": ["a"] * 300},
        {"regex": "a"},
        {"unknown": 1},
        {"ignore_eos": True, "stop": ["a", "b"], "stop_token_ids": [3], "min_p": 0.1, "top_k": 5},
    ]
    bodies: list[dict[str, object]] = [
        two | {"sampling_params": [{"n": 2}, {"n": 3}]},
        two | {"sampling_params": [{"n": 1}] * 3},
        two | {"rid": ["a", "a"]},
        two | {"rid": ["a"]},
        two | {"rid": "a", "return_logprob": [True, False], "logprob_start_len": [0, -1]},
        one | {"logprob_start_len": 5},
        one | {"rid": "a"},
        one | {"stream": True},
        {"input_ids": [[5]] * 5000, "sampling_params": {"n": 4, "max_new_tokens": 1}},
        {"input_ids": []},
        {"input_ids": [9999], "sampling_params": {"max_new_tokens": 1}},
        {"input_ids": [5] * 70},
        {"text": "12="},
        {"text": ["12=", "13="], "sampling_params": {"max_new_tokens": 4}},
    ]
    return tuple(map(dump, [*(one | {"sampling_params": {"max_new_tokens": 4} | each} for each in odd), *bodies]))


def replies() -> tuple[bytes, ...]:
    """Replies to /generate that are nearly right, beside those of a real server."""
    meta = {"finish_reason": {"type": "stop", "matched": 1}, "weight_version": "3"}
    one = {
        "text": "a",
        "output_ids": [5, 6],
        "meta_info": meta | {"output_token_logprobs": [[-0.5, 5, None], [-1, 6, None]]},
    }
    spans = [{"version": "1", "start": 0, "end": 1}, {"version": "2", "start": 1, "end": 2}]
    abort = {"finish_reason": {"type": "abort"}}
    found = [
        one,
        one | {"output_ids": [5]},
        one | {"output_ids": [9999], "meta_info": meta | {"output_token_logprobs": [[-0.5, 9999, None]]}},
        one | {"meta_info": one["meta_info"] | {"weight_versions": spans}},
        one | {"meta_info": one["meta_info"] | {"weight_versions": spans[1:]}},
        one | {"meta_info": one["meta_info"] | {"weight_versions": spans} | abort, "output_ids": [5]},
        one | {"meta_info": meta | abort},
    ]
    return tuple(dump([each, each]) for each in found)


def server_infos() -> tuple[bytes, ...]:
    """Answers to /server_info of servers of all ages."""
    versions = ("0.5.1", "0.5.6", "0.5.23", "0.6.0", "new", 5)
    return tuple(dump({"version": each, "tp_size": 2, "dp_size": 2, "pp_size": 0}) for each in versions)


def manifests() -> tuple[bytes, ...]:
    """Lists of files that are nearly right; whether they are is seen before their checksum."""
    record = {"name": "a", "num_bytes": 1, "sha256": "0" * 64}
    odd = [{"name": "../a"}, {"name": ""}, {"name": "/a"}, {"num_bytes": -1}, {"sha256": "x"}, {}]
    lists = [*([record | each] for each in odd), [record, record]]
    files = [{"format": 1, "step": 3, "files": each, "sha256": "0"} for each in lists]
    return (*map(dump, files), dump(files[0] | {"step": -1}), dump(files[0] | {"format": 2}))


def indexes() -> tuple[bytes, ...]:
    """An index of two files, and some that disagree with them."""
    right = {"a.weight": "one.safetensors", "b.weight": "one.safetensors", "c.weight": "two.safetensors"}
    maps = [right, {}, right | {"d.weight": "two.safetensors"}, right | {"c.weight": "one.safetensors"}]
    maps += [right | {"c.weight": name} for name in ("gone.safetensors", "../two.safetensors", "")]
    maps += [right | {"c.weight": "wide.safetensors"}]
    maps += [{"d.weight": "two.safetensors"}, {"c.weight": "two.safetensors"}, {"e.weight": "other.safetensors"}]
    return tuple(dump({"metadata": {}, "weight_map": each}) for each in maps)


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
CONTROLLED = {"controlled_by": "pi kl_coef", "control": {"value": 1.5, "integral": -0.25, "measured": 0.5}}
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
CURRICULUM = b'{"num_prompts": 3}\n[0, 0.375, 8, 0]\n[2, 1.0, 16, 3]\n'
RESOLVED = dump_config(load_config(TINY_RUN)).encode()
EXTENDING = (
    b"extends: base.yaml\nrun: {name: a}\noptimizer: {lr: 3e-4}\nalgorithm: {loss: {name: kl_cov}}\n",
    b"extends: [base.yaml, base.yaml]\nrollout: {stop: [a]}",
    b"extends: [run.yaml]",
    b"extends: c0.yaml",
    b"extends: 5",
    b"[]",
    b'run: {name: "a\\0"}',
)
SITES = (
    b"MEGACOV_UNKNOWN=1",
    b"MEGACOV_CONTAINER=docker\nMEGACOV_IMAGE=a",
    b"MEGACOV_CONTAINER=pyxis",
    b"MEGACOV_PARTITION=a b",
    b"MY_TOKEN=abc",
    b"MEGACOV_IMAGE=https://user:secret@host/a\nMEGACOV_CONTAINER=pyxis",
    b"HF_HOME=https://user:secret@host/a",
)
GARBLED = b"megacov-report node0 0 1 {}\nmegacov-report node1 0 1 [1\nother"
ADDRESSES = "# servers\nhttp://10.0.0.5:30000\nhttps://[fd00::1]:3/ # rack 2\nhttp://server:30000\n"
# Each is nearly right, and small: the bounds are met by aliases and by nesting.
YAML = (
    b"a: &a [*a]\n",
    b"a: &a [1]\nb: [" + b"*a, " * 1001 + b"]\n",
    b"a: &a [1, 1, 1, 1]\n" + b"".join(b"%c: &%c [%s]\n" % (98 + i, 98 + i, b"*%c, " % (97 + i) * 8) for i in range(6)),
    b"[" * 65,
    b"a: 1\na: 2\n",
    b"1: a\n",
    b"!!bool a\n",
    b"!!int " + b"9" * 50,
    b'"\\ud800"\n',
    b'"\\UFFFFFFFF"\n',
    b"a: !!timestamp 2020-01-01\n",
    b"k: " + b"x" * (256 * 2**10),
)
ALIASES = "a: &a {x: 1, y: .inf}\nb: {<<: *a, y: [3e-4, ~, true, !!str 5]}\nc: [*a, *a]\nd: |\n  text\ne: '\\x'\n"
PROMPTS = b"".join(dump({"prompt": f"{each}=", "answer": each}) + b"\n" for each in (10, "11", 1.5))
