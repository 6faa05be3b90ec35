"""SLURM's output about jobs, and the runs to which they belong."""

from __future__ import annotations

from pathlib import Path

import pytest

from megacov.errors import DataError
from megacov.launch.jobs import Listed, SlurmJob, choose_job, parse_job, parse_list, run_of_job, script_of


def line(job: str, state: str = "RUNNING", **more: str) -> str:
    """As SLURM 22.05 prints it, shortened; its values may hold blanks and equals signs."""
    words = {"JobId": job} | {name: value for name, value in more.items() if name.startswith(("Array", "Het"))}
    words |= {"JobName": "a b=c", "JobState": state, "Reason": "None", "Restarts": "0", "ExitCode": "0:0"}
    words |= {"RunTime": "00:10:00", "TimeLimit": "1-02:00:00", "NodeList": "node[0-1]", "NumNodes": "2"}
    words |= {"Command": "/runs/x.sbatch 0", "WorkDir": "/", "StdOut": f"/runs/x-{job}.out"} | more
    return " ".join(f"{name}={value}" for name, value in words.items()) + " \n"


def job_of(text: str, name: str = "7") -> SlurmJob:
    job = parse_job(text, name)
    assert job is not None
    return job


def test_a_job_that_runs():
    job = job_of(line("7", Restarts="3"))
    assert (job.job_id, job.name, job.state, job.restarts, job.command) == (
        "7",
        "7",
        "RUNNING",
        3,
        ("/runs/x.sbatch", "0"),
    )
    assert (job.nodes, job.num_nodes, job.reason, job.left_s) == ("node[0-1]", 2, "", 26 * 3600 - 600)
    assert not (job.is_over or job.is_waiting or job.is_later_of_chain)
    assert job_of(line("7", TimeLimit="UNLIMITED")).left_s is None


def test_a_job_that_waits():
    words = {"Reason": "Priority", "NodeList": "", "NumNodes": "2-2", "Command": "/runs/x.sbatch 1"}
    job = job_of(line("7", "PENDING", **words))
    assert (job.is_waiting, job.reason, job.nodes, job.num_nodes, job.left_s) == (True, "Priority", "", 2, None)
    assert job.is_later_of_chain


@pytest.mark.parametrize(("said", "code"), [("3:0", 3), ("0:15", 143), ("0:0", 0)])
def test_a_job_that_has_ended(said, code):
    job = job_of(line("7", "FAILED", ExitCode=said))
    assert job.is_over and job.exit_code == code and job.left_s is None


def test_tasks_of_an_array_are_different_runs():
    task = line("9", ArrayJobId="7", ArrayTaskId="4")
    assert job_of(task, "7_4").name == job_of(task, "9").name == "7_4"
    for text in (task + line("7", ArrayJobId="7", ArrayTaskId="5"), line("7", ArrayJobId="7", ArrayTaskId="4-5%1")):
        with pytest.raises(DataError, match="job 7 is an array, with a run for each of its tasks: name one, as in 7_4"):
            parse_job(text, "7")


def test_components_of_a_heterogeneous_job_are_one():
    text = line("7", HetJobId="7", HetJobOffset="0") + line("8", HetJobId="7", HetJobOffset="1", NodeList="node5")
    job = job_of(text)
    assert (job.name, job.nodes, job.num_nodes) == ("7", "node[0-1],node5", 4)


def test_a_list_holds_jobs_of_other_runs_too(tmp_path):
    script = tmp_path / "x.sbatch"
    script.touch()
    (tmp_path / "link").symlink_to(tmp_path)
    text = f"""
12 PENDING {tmp_path}/link/x.sbatch 1
9 CANCELLED {script} 0
5_1 RUNNING {script} 0
5_3 RUNNING {script} 0
8 RUNNING /elsewhere/x.sbatch 0
6 RUNNING \0{tmp_path}/x.sbatch 0
7 RUNNING bash
10+0 PENDING {script} 0
10+1 PENDING {script} 0
"""
    alone = parse_list(text, script, "")
    assert alone == (Listed("9", "CANCELLED"), Listed("10", "PENDING"), Listed("12", "PENDING"))
    assert parse_list(text, script, "_3") == (Listed("5_3", "RUNNING"),)
    assert choose_job(alone) == Listed("10", "PENDING")
    assert choose_job([*alone, Listed("13", "COMPLETING")]) == Listed("13", "COMPLETING")
    assert choose_job([Listed("3", "FAILED"), Listed("4", "COMPLETED")]) == Listed("4", "COMPLETED")
    assert choose_job([]) is None


def test_a_job_leads_to_its_run(tmp_path):
    script = tmp_path / "x.sbatch"
    script.write_text("python -m megacov.launch.node_ranks")
    assert run_of_job(job_of(line("7", Command=f"{script} 0"))) == tmp_path / "x"
    task = job_of(line("9", ArrayJobId="7", ArrayTaskId="4", Command=f"{script} 0"), "7_4")
    assert run_of_job(task) == tmp_path / "x_seed4"
    assert script_of(tmp_path / "x_seed4") == (script, "_4")
    assert script_of(tmp_path / "x") == (script, "")
    own = Path(f"{tmp_path}/x_seed4.sbatch")
    own.touch()
    assert script_of(tmp_path / "x_seed4") == (own, "")


@pytest.mark.parametrize("command", ["(null)", "bash", "/etc/hosts", "/gone/x.sbatch"])
def test_other_jobs_are_none_of_ours(command):
    with pytest.raises(DataError, match="job 7 was not submitted by `megacov launch`"):
        run_of_job(job_of(line("7", Command=command)))
