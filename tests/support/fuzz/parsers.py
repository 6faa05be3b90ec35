"""Every reader of text from outside: its valid files, how it is called, and the functions whose branches count."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pydantic import ValidationError

from megacov.checkpoint.manifest import MANIFEST_NAME, read_manifest
from megacov.config.yaml_text import parse_yaml
from megacov.data.tokenizer import load_tokenizer
from megacov.embedded_server.bodies import RequestError
from megacov.embedded_server.weights import WeightsDoNotFitError
from megacov.json_text import JsonError, parse_json
from megacov.launch.site import read_site
from megacov.monitor.status_file import read_logged_steps
from megacov.plan.model_sizes import read_model_sizes
from megacov.rollout import AddressFile, load_carried
from megacov.trainer.saving.about import read_about
from tests.support.fuzz.parser import Parser
from tests.support.fuzz.readers import (
    as_text,
    load_run,
    manifest_seed,
    prepare_run,
    prepare_tokenizer,
    prepare_weights,
    read_accuracies,
    read_body,
    read_gpus,
    read_index,
    read_job,
    read_keys_file,
    read_node_reports,
    read_overrides,
    read_partitions,
    read_prompts,
    read_reply,
    read_reply_object,
    read_shape,
    written,
)
from tests.support.fuzz.seeds import (
    ABOUT,
    ADDRESSES,
    ALIASES,
    CARRIED,
    CONTROLLED,
    CURRICULUM,
    ENDED,
    EXTENDING,
    GARBLED,
    GPUS,
    HETEROGENEOUS,
    JOB,
    LIST,
    PARTITIONS,
    PROMPTS,
    REPORTS,
    RESOLVED,
    ROOT,
    SITES,
    STATUS,
    TASK,
    YAML,
    captured,
    dump,
    indexes,
    manifests,
    models,
    replies,
    requests,
    server_infos,
)

PARSERS = (
    Parser(
        "YAML",
        "words",
        (ALIASES.encode(), RESOLVED[:1500], *YAML),
        lambda _folder, content: parse_yaml(as_text(content), source="x"),
        {"config/yaml_text.py": ("_Loader", "parse_yaml", "_cut", "_cut_sentence")},
    ),
    Parser(
        "configuration",
        "yaml",
        (RESOLVED, *EXTENDING),
        written("run.yaml", load_run),
        {"config/load.py": ("_Reader", "_read_file", "_parents", "_merge", "_refuse_nul", "make_config")},
        prepare=prepare_run,
        weight=0.5,
    ),
    Parser(
        "overrides",
        "words",
        (b"optimizer.lr=3e-4\nrollout.stop=[a, b]\nrun.steps=3", b"algorithm.loss={name: kl_cov, kl_coef: 2}"),
        read_overrides,
        {"config/load.py": ("_parse_overrides",)},
        weight=0.3,
    ),
    Parser(
        "prompts",
        "lines",
        (PROMPTS,),
        written("p.jsonl", read_prompts),
        {"data/prompts.py": ("_read_records", "_parse_line")},
    ),
    Parser(
        "config.json, for check",
        "json",
        models(),
        written("config.json", lambda folder: read_model_sizes(folder / "config.json")),
        {"plan/model_sizes.py": ()},
    ),
    Parser(
        "config.json, for training",
        "json",
        models(),
        written("config.json", read_shape),
        {
            "megatron/model_shape.py": ("read_model_shape",),
            "megatron/families/hf_config.py": (
                "read_sizes",
                "refuse_unless",
                "_read_rope_scaling",
                "_read_sliding_window",
            ),
        },
    ),
    Parser(
        "tokenizer.json",
        "json",
        ((ROOT / "examples" / "tiny_policy" / "tokenizer.json").read_bytes(),),
        written("tokenizer.json", lambda folder: load_tokenizer(folder, vocab_size=1024)),
        {},
        prepare=prepare_tokenizer,
        weight=0.5,
    ),
    Parser(
        "safetensors index",
        "json",
        indexes(),
        written("model.safetensors.index.json", read_index),
        {
            "megatron/hf_folder.py": ("HfFolder.__init__", "_files_of", "_read_index"),
            "embedded_server/weights.py": ("load_weights", "_files_of", "_file_names", "_checked_names"),
        },
        refusals=(WeightsDoNotFitError,),
        prepare=prepare_weights,
    ),
    Parser(
        "manifest",
        "json",
        (manifest_seed(Path(tempfile.mkdtemp())), *manifests()),
        written(MANIFEST_NAME, read_manifest),
        {
            "checkpoint/manifest.py": (
                "read_manifest",
                "_parse",
                "_parse_record",
                "_problem",
                "_is_count",
                "_stays_inside",
            )
        },
    ),
    Parser(
        "trainer.json",
        "json",
        (dump(ABOUT | {"prompts_sha256": "0"}), dump(ABOUT | {"prompts_sha256": "0"} | CONTROLLED)),
        written("trainer.json", read_about),
        {"trainer/saving/about.py": ()},
    ),
    Parser(
        "carried.jsonl",
        "lines",
        (CARRIED.encode(),),
        lambda _folder, content: load_carried(as_text(content)),
        {"rollout/sampling/carried.py": ("load_carried", "_group", "_completion")},
    ),
    Parser("curriculum.jsonl", "lines", (CURRICULUM,), read_accuracies, {"data/curriculum.py": ("load", "_checked")}),
    Parser(
        "status.json",
        "json",
        (dump(STATUS),),
        written("status.json", read_logged_steps),
        {"monitor/status_file.py": ("read_logged_steps", "_parse", "_parse_step")},
    ),
    Parser(
        "reply to /generate",
        "json",
        captured("generate_*n2*.json", "response") + captured("abort_all_victim.json", "response") + replies(),
        read_reply,
        {"rollout/client/wire.py": ("read_completions", "_completion", "_version_spans", "error_sentence")},
    ),
    Parser(
        "other replies",
        "json",
        server_infos() + captured("get_server_info.json", "response") + captured("err_*.json", "response"),
        read_reply_object,
        {
            "rollout/client/capabilities.py": ("read_capabilities", "_size", "version_warning"),
            "rollout/client/connection.py": ("parsed",),
        },
    ),
    Parser(
        "SLURM's jobs",
        "words",
        tuple(each.encode() for each in (JOB, TASK + TASK, HETEROGENEOUS, ENDED, LIST)),
        read_job,
        {
            "launch/jobs.py": ("parse_job", "parse_list", "_known", "_command", "choose_job"),
            "launch/slurm.py": ("read_count", "read_seconds"),
        },
    ),
    Parser(
        "SLURM's partitions",
        "words",
        (PARTITIONS.encode(),),
        read_partitions,
        {"launch/partitions.py": ("parse_partitions",)},
    ),
    Parser(
        "nodes' reports",
        "words",
        (REPORTS.encode(), GARBLED),
        read_node_reports,
        {"launch/node_report.py": ("read_reports", "_from_json")},
        refuses=False,
    ),
    Parser(
        "nvidia-smi",
        "words",
        (GPUS.encode(),),
        read_gpus,
        {"launch/gpus.py": ("judge_gpus", "_problems_of", "_problems_of_links", "_number")},
        refuses=False,
    ),
    Parser(
        "site file",
        "words",
        tuple(path.read_bytes() for path in sorted((ROOT / "slurm" / "sites").glob("*.env"))) + SITES,
        written("site.env", lambda folder: read_site(folder / "site.env")),
        {"launch/site.py": ("read_site", "refuse_secret", "_setting")},
    ),
    Parser(
        "keys file",
        "yaml",
        (b"api-key: abc\nadmin-api-key: def\nother: 1\n",),
        read_keys_file,
        {"rollout/fleet/keys.py": ("read_keys",)},
    ),
    Parser(
        "addresses file",
        "words",
        (ADDRESSES.encode(),),
        written("servers.txt", lambda folder: AddressFile(folder / "servers.txt").read()),
        {
            "rollout/fleet/address_file.py": ("AddressFile.read",),
            "config/addresses.py": ("check_addresses", "_host_of"),
        },
    ),
    Parser(
        "request to /generate",
        "json",
        captured("generate_*.json", "request") + requests(),
        read_body,
        {
            "embedded_server/bodies.py": (
                "parse_sampling_params",
                "_check_ranges",
                "GenerateBody.unsupported",
                "_SamplingBody",
            ),
            "embedded_server/requests.py": (
                "build_requests",
                "_prompts",
                "_check_prompt",
                "_spread",
                "_rids",
                "is_single",
            ),
        },
        refusals=(RequestError, ValidationError, JsonError),
    ),
    Parser(
        "JSON",
        "json",
        models(),
        lambda _folder, content: parse_json(content),
        {"json_text.py": ()},
        refusals=(JsonError,),
    ),
)
