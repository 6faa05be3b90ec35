"""Jobs that could never start are refused before they are submitted."""

from __future__ import annotations

import pytest

from megacov.errors import ConfigError, SubmitError
from megacov.launch.partitions import check_partition, parse_partitions

# As SLURM 22.05 prints it, shortened.
ANSWER = """\
PartitionName=batch AllowGroups=ALL Default=YES MaxNodes=UNLIMITED MaxTime=UNLIMITED State=UP TotalCPUs=256 TotalNodes=4
PartitionName=short AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=1-02:30:00 State=UP TotalCPUs=256 TotalNodes=4
PartitionName=old AllowGroups=ALL Default=NO MaxNodes=2 MaxTime=01:00:00 State=DOWN TotalCPUs=256 TotalNodes=4
"""
PARTITIONS = parse_partitions(ANSWER)


def test_limits_are_read() -> None:
    batch, short, old = PARTITIONS
    assert (batch.is_default, batch.nodes, batch.max_nodes, batch.max_minutes) == (True, 4, None, None)
    assert (short.is_default, short.max_nodes, short.max_minutes) == (False, 2, 26 * 60 + 30)
    assert (old.is_up, old.max_minutes) == (False, 60)


@pytest.mark.parametrize(("name", "nodes", "minutes"), [("", 4, 99999), ("batch", 4, 99999), ("short", 2, 1590)])
def test_what_fits_passes(name: str, nodes: int, minutes: int) -> None:
    check_partition(PARTITIONS, name, nodes=nodes, minutes=minutes)


@pytest.mark.parametrize(
    ("name", "nodes", "minutes", "sentence"),
    [
        ("gpu", 1, 1, "there is no partition gpu; there are batch, short, old"),
        ("batch", 5, 1, "the job takes 5 nodes and the partition batch has 4"),
        ("", 5, 1, "the job takes 5 nodes and the partition batch has 4"),
        ("short", 3, 1, "the partition short gives a job at most 2"),
        ("short", 2, 1591, "time_limit_min is 1591 and the limit of the partition short is 1590"),
        ("old", 1, 1, "the partition old takes no jobs now"),
        ("short,gpu", 1, 1, "there is no partition gpu"),
        ("short,old", 3, 1, "the partition short gives a job at most 2"),
    ],
)
def test_what_does_not_fit_is_one_sentence(name: str, nodes: int, minutes: int, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_partition(PARTITIONS, name, nodes=nodes, minutes=minutes)


def test_a_cluster_may_have_no_default() -> None:
    with pytest.raises(ConfigError, match="no default partition; there are short, old"):
        check_partition(PARTITIONS[1:], "", nodes=1, minutes=1)


def test_one_of_several_partitions_is_enough() -> None:
    for several in ("short,batch", "old,short", "short"):
        check_partition(PARTITIONS, several, nodes=2, minutes=1)


def test_numbers_are_read_as_slurm_prints_them() -> None:
    """1024 nodes are 1K in its answers."""
    (large,) = parse_partitions(ANSWER.splitlines()[0].replace("TotalNodes=4", "TotalNodes=2K"))
    assert large.nodes == 2048
    with pytest.raises(SubmitError, match="SLURM gives 'many' where a number belongs"):
        parse_partitions(ANSWER.splitlines()[0].replace("TotalNodes=4", "TotalNodes=many"))
