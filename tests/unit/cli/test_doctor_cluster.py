"""Findings of the doctor on nodes: programs on the path, files of the kernel, limits of this process."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from megacov.cli import doctor_cluster as doctor

ROOT = Path(__file__).parents[3]
PARTITIONS = """\
PartitionName=batch Default=YES State=UP TotalNodes=4
PartitionName=old Default=NO State=DOWN TotalNodes=2
"""


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """fn(name=script of bash, ...): only these programs are on the path."""

    def make(**scripts: str) -> None:
        for name, script in scripts.items():
            path = tmp_path / "bin" / name.replace("_", "-")
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"#!/bin/bash\n{script}\n")
            path.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    return make


def test_a_machine_without_anything_is_examined(programs):
    programs()
    findings = {finding.part: finding for finding in doctor.examine_node()}
    for part in ("SLURM", "containers", "NVIDIA driver"):
        assert findings[part].state == "absent"
    assert all(finding.found and finding.used_for and finding.without for finding in findings.values())
    assert not any(finding.state == "wrong" for finding in findings.values())


def test_slurm_and_its_partitions(programs):
    programs(scontrol=f"[[ $1 == --version ]] && echo slurm 22.05.8 || echo '{PARTITIONS}'")
    inside = doctor.find_slurm({"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "node[0-1]"})
    assert inside.state == "found"
    assert inside.found.splitlines() == [
        "slurm 22.05.8",
        "partition batch: 4 nodes, default",
        "partition old: 2 nodes, down",
        "inside job 7 on node[0-1]",
    ]
    assert "inside" not in doctor.find_slurm({}).found


def test_a_slurm_that_cannot_be_reached(programs):
    programs(scontrol="echo more >&2; echo 'Unable to contact slurm controller' >&2; exit 1")
    finding = doctor.find_slurm({})
    assert (finding.state, finding.found) == ("broken", "scontrol says 'Unable to contact slurm controller'.")


def test_nothing_is_waited_for_long(programs, monkeypatch):
    monkeypatch.setattr(doctor, "_ASK_S", 0.2)
    programs(scontrol="exec /bin/sleep 60", srun="exec /bin/sleep 60", nvidia_smi="exec /bin/sleep 60")
    start = time.monotonic()
    findings = {finding.part: finding for finding in doctor.examine_node()}
    assert time.monotonic() - start < 30
    assert findings["SLURM"].found == "SLURM has not answered within 0.2 s."
    assert (findings["NVIDIA driver"].state, findings["NVIDIA driver"].found) == (
        "broken",
        "nvidia-smi has not answered within 0.4 s",
    )


def test_gpus_are_counted_by_kind(programs):
    programs(nvidia_smi="for i in 1 2 3; do echo '550.54.15, NVIDIA H100 80GB HBM3'; done")
    finding = doctor.find_driver()
    assert (finding.state, finding.found) == ("found", "550.54.15\n3 x NVIDIA H100 80GB HBM3")
    programs(nvidia_smi="echo 'No devices were found'; exit 6")
    assert doctor.find_driver().found == "nvidia-smi says 'No devices were found'"


def test_container_tools(programs):
    programs(srun="echo '      --container-image=[USER@][REGISTRY#]IMAGE'", apptainer="")
    found = doctor.find_containers()
    assert found.state == "found" and "pyxis" in found.found and "apptainer" in found.found
    programs(srun="echo '  -N, --nodes=N'")
    assert "pyxis" not in doctor.find_containers().found


def test_infiniband_serves_if_a_port_is_active(tmp_path):
    assert doctor.find_infiniband(tmp_path).state == "absent"
    for device, state in (("mlx5_0", "4: ACTIVE"), ("mlx5_1", "1: DOWN")):
        port = tmp_path / device / "ports" / "1"
        port.mkdir(parents=True)
        for name, text in (("state", state), ("rate", "400 Gb/sec (4X NDR)"), ("link_layer", "InfiniBand")):
            (port / name).write_text(f"{text}\n")
    found = doctor.find_infiniband(tmp_path)
    assert found.state == "found"
    assert found.found.splitlines() == [
        "mlx5_0 port 1: ACTIVE, 400 Gb/sec (4X NDR), InfiniBand",
        "mlx5_1 port 1: DOWN, 400 Gb/sec (4X NDR), InfiniBand",
    ]
    (tmp_path / "mlx5_0" / "ports" / "1" / "state").write_text("1: DOWN")
    assert doctor.find_infiniband(tmp_path).state == "broken"


@pytest.mark.parametrize(
    ("limit", "look", "state"),
    [
        ("RLIMIT_MEMLOCK, (65536, 65536)", "find_locked_memory(Path('/nowhere'))", "found"),
        ("RLIMIT_MEMLOCK, (65536, 65536)", "find_locked_memory(Path(sys.argv[1]))", "broken"),
        ("RLIMIT_NOFILE, (1024, 4096)", "find_open_files()", "broken"),
    ],
)
def test_limits_are_those_of_this_process(tmp_path, limit, look, state):
    (tmp_path / "mlx5_0" / "ports" / "1").mkdir(parents=True)
    code = f"""
import resource, sys
from pathlib import Path
from megacov.cli.doctor_cluster import *
resource.setrlimit(resource.{limit})
print({look}.state)
assert "torch" not in sys.modules
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert said.stdout == f"{state}\n", said.stderr


def test_shared_memory_is_measured(tmp_path):
    assert "GiB free" in doctor.find_shared_memory(tmp_path).found
    assert doctor.find_shared_memory(tmp_path / "none").state == "broken"
