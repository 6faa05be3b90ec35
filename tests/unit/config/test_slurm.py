"""Options of sbatch in a configuration: lists and text, and the sentences that refuse the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.config import editor_schema, load_config
from megacov.errors import ConfigError

TINY = Path(__file__).parents[3] / "yaml_configs" / "runs" / "tiny_grpo.yaml"


@pytest.mark.parametrize(
    ("text", "partition"), [("a", "a"), ("a,b", "a,b"), ("[a, b]", "a,b"), ("[a]", "a"), ("null", None)]
)
def test_partitions_are_a_text_or_a_list(text: str, partition: str | None) -> None:
    slurm = load_config(TINY, [f"slurm.partition={text}", f"slurm.server_partition={text}"]).slurm
    assert (slurm.partition, slurm.server_partition) == (partition, partition)
    kinds = str(editor_schema()["$defs"]["SlurmSection"]["properties"]["partition"])
    assert "array" in kinds and "string" in kinds


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("partition=a b", "slurm.partition is 'a b': SLURM's names consist of letters"),
        ("partition='a,'", "slurm.partition is 'a,': SLURM's names"),
        ("partition=[a, 7]", r"slurm.partition is \['a', 7\]: it must be text"),
        ("partition='a\n#SBATCH --nodes=1'", "slurm.partition is"),
        ("qos='$(id)'", "slurm.qos is"),
        ("exclude='a;b'", "slurm.exclude is"),
        (r'constraint="a\nb"', "holds a line break"),
        ("gres=' '", "is empty"),
        (r'extra=["--comment=a\n#SBATCH --nodes=99"]', "holds a line break"),
        ("extra=[-p, a]", "'-p' is not an option of sbatch in its long form"),
        ("extra=['--Comment=x']", "not an option of sbatch in its long form"),
        ("extra=['--partition=a']", "sets --partition, which follows from slurm.partition"),
        ("extra=['--part=a']", "sets --partition, which follows from slurm.partition"),
        ("extra=['--nodes=3']", "follows from cluster.nodes"),
        ("extra=['--qos=a']", "follows from slurm.qos"),
        ("extra=['--mem=1G']", "sets --mem, which the job script does not leave open"),
        ("extra=['--no-req']", "sets --no-requeue, which"),
        ("extra=['--export=ALL,HF_TOKEN=abc']", "the value of --export looks like a secret"),
        ("extra=['--comment=https://me:pass@host/']", "the value of --comment looks like a secret"),
    ],
)
def test_options_that_sbatch_or_the_script_cannot_take(override: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        load_config(TINY, [f"slurm.{override}"])


def test_options_that_only_begin_like_one_of_the_script_are_free() -> None:
    options = [
        "--nodelist=a",
        "--time-min=10",
        "--mem-bind=local",
        "--export=ALL,A=1",
        "--hold",
        "--error=e",
        "--nice=3",
    ]
    assert load_config(TINY, [f"slurm.extra={options}"]).slurm.extra == tuple(options)
