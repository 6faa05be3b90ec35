"""Decisions of a job script: after which ends it tries again, and when it stops trying. Its functions run in bash."""

from __future__ import annotations

import fcntl
import subprocess
from pathlib import Path

import pytest

from megacov.launch.sbatch import render
from tests.unit.launch.test_sbatch import SHAPES, make_job


def call(run: Path, commands: str) -> str:
    """Define the functions of a job whose run is in a folder, and run commands. Returns their output."""
    definitions = render(make_job(SHAPES["split"])).rpartition('main "$@"')[0]
    script = f"{definitions}\nrun={run} SLURM_JOB_ID=7 all_hosts=(n0 n1 n2)\n{commands}"
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert not ended.stderr, ended.stderr
    return ended.stdout


def save(run: Path, step: int) -> None:
    """The part of a checkpoint that the script looks at."""
    folder = run / "checkpoints" / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / "MANIFEST.json").touch()


def test_the_newest_step_is_a_number(tmp_path: Path) -> None:
    assert call(tmp_path, "newest_step") == "0\n"
    for step in (8, 10, 9):
        save(tmp_path, step)
    (tmp_path / "checkpoints" / "step_00000099").mkdir()  # not whole
    assert call(tmp_path, "newest_step") == "10\n"


@pytest.mark.parametrize(
    ("code", "without_progress", "with_progress"),
    [
        *((code, True, True) for code in (75, 4, 5, 8, 11, 137, 138, 143, 233)),
        *((code, False, True) for code in (1, 9)),
        *((code, False, False) for code in (0, 2, 3, 6, 7, 10, 12, 127, 130)),
    ],
)
def test_what_may_pass(code: int, without_progress: bool, with_progress: bool, tmp_path: Path) -> None:
    save(tmp_path, 4)
    for begun_at, passes in ((4, without_progress), (2, with_progress)):
        told = call(tmp_path, f"begun_at={begun_at}; if may_pass {code}; then echo yes; else echo no; fi")
        assert told == ("yes\n" if passes else "no\n")


def test_starts_are_counted_until_there_is_progress(tmp_path: Path) -> None:
    run, count = tmp_path / "run", "count_starts; echo $starts"
    counted = [call(run, count) for _ in range(3)]
    save(run, 1)
    counted += [call(run, count) for _ in range(2)]
    assert "".join(counted).split() == ["0", "1", "2", "0", "1"]


def test_jobs_that_take_turns_are_counted_apart(tmp_path: Path) -> None:
    run = tmp_path / "run"
    counted = [call(run, f"SLURM_JOB_ID={job}; count_starts; echo $starts") for job in (7, 8, 7, 8, 7)]
    assert "".join(counted).split() == ["0", "0", "1", "1", "2"]


@pytest.mark.parametrize(("array", "named"), [("", "9"), ("SLURM_ARRAY_JOB_ID=9 SLURM_ARRAY_TASK_ID=3", "9_3")])
def test_a_task_of_an_array_is_requeued_alone(array: str, named: str, tmp_path: Path) -> None:
    # The task that has the number of the whole array.
    asked = call(
        tmp_path / "run",
        f"""
        scontrol() {{ echo "$*" >>{tmp_path}/asked; echo "JobState=RUNNING ExcNodeList=(null)"; }}
        SLURM_JOB_ID=9 logs=$run code=11 {array}
        choose_run
        mkdir -p $run/logs $logs/preflight
        echo n1 >$logs/preflight/bad_nodes
        (finish) >/dev/null || cat {tmp_path}/asked
        """,
    )
    assert asked.splitlines() == [
        f"show job --oneliner {named}",
        f"requeue {named}",
        f"show job --oneliner {named}",
        f"update JobId={named} ExcNodeList=n1",
    ]


@pytest.mark.parametrize(
    ("bad", "excluded"), [(["n1"], "n1"), (["n0", "n2"], "n0,n2"), (["n0", "n1", "n2"], ""), (["n0"], "n0")]
)
def test_all_nodes_are_never_kept_out(bad: list[str], excluded: str, tmp_path: Path) -> None:
    (tmp_path / "preflight").mkdir(parents=True)
    (tmp_path / "preflight" / "bad_nodes").write_text("".join(f"{node}\n" for node in bad))
    assert call(tmp_path, "logs=$run; nodes_to_exclude").strip() == excluded


def test_each_component_keeps_its_own_list_of_nodes(tmp_path: Path) -> None:
    asked = call(
        tmp_path,
        """
        scontrol() { if [[ $1 == show ]]; then echo "JobId=$4 ExcNodeList=old$4 "; else echo "$*"; fi; }
        job=7 SLURM_JOB_ID_HET_GROUP_0=7 SLURM_JOB_ID_HET_GROUP_1=8 logs=$run
        mkdir -p $run/logs $run/preflight
        echo n1 >$run/preflight/bad_nodes
        exclude_bad_nodes""",
    )
    assert asked.splitlines() == ["update JobId=7 ExcNodeList=old7,n1", "update JobId=8 ExcNodeList=old8,n1"]


def test_a_run_waits_for_its_lock_only_where_another_holds_it(tmp_path: Path) -> None:
    impatient = 'flock() { command flock --timeout 0.2 "${@:3}"; }; wait_for_lock; echo "code $?"'
    lock = tmp_path / "run.lock"
    assert call(tmp_path, impatient) == "code 0\n"
    with lock.open("w") as file:
        assert call(tmp_path, impatient) == "code 0\n"
        fcntl.flock(file, fcntl.LOCK_EX)
        said = call(tmp_path, f"set +e; {impatient}")
        assert "is in use by another process" in said and said.endswith("code 8\n")
    # flock's codes for a file system without locks, and for a file that it cannot open.
    for code in (65, 66, 1):
        said = call(tmp_path, f'flock() {{ return {code}; }}; wait_for_lock; echo "code $?"')
        assert f"run.lock cannot be locked ({code})" in said and said.endswith("code 0\n")


@pytest.mark.parametrize("verb", ["train", "resume"])
def test_a_seed_of_an_array_wins_over_settings(verb: str, tmp_path: Path) -> None:
    save(tmp_path / "run_seed3", 1) if verb == "resume" else None
    commands = "SLURM_ARRAY_JOB_ID=9 SLURM_ARRAY_TASK_ID=3 overrides=(run.seed=1 run.name=x)\n"
    words = call(tmp_path / "run", commands + 'choose_run; choose_verb; echo "${verb[@]}"').split()
    assert words[0] == verb
    settings = [word for word in words if word.startswith(("run.seed", "run.name"))]
    assert settings == ["run.seed=1", "run.name=x", "run.seed=3", "run.name=a_run_seed3"]


def test_what_an_attempt_of_the_same_number_left_is_gone(tmp_path: Path) -> None:
    logs = tmp_path / "logs" / "slurm_7_0"
    (logs / "preflight" / "all_reduce_all").mkdir(parents=True)
    (logs / "failed").write_text("3")
    call(tmp_path, "make_logs")
    assert not (logs / "failed").exists()
    assert list((logs / "preflight").iterdir()) == []


@pytest.mark.parametrize("has_it", [False, True])
def test_the_trainer_is_asked_to_leave_until_it_has_been_told(has_it: bool, tmp_path: Path) -> None:
    (tmp_path / "asked").touch() if has_it else None
    said = call(
        tmp_path,
        """
        bash -c 'trap "echo told" USR1; for i in {1..15}; do sleep 0.1; done' &
        train_pid=$! leave_asked=1 logs=$run SECONDS=4
        sleep 0.3
        wait_for_trainer
        """,
    )
    assert ("told" in said) != has_it


def test_too_few_gpus_end_the_run_for_good(tmp_path: Path) -> None:
    steps = ("preflight", "check_network", "start_servers", "start_trainer")
    stubs = "".join(f"{name}() {{ echo {name} >>{tmp_path}/called; }}; " for name in steps)
    said = call(
        tmp_path / "run",
        f"""{stubs}
        find_nodes() {{ train_hosts=(n0); server_hosts=(n0); }}
        SLURM_GPUS_ON_NODE=4
        (main 0) || echo "code $?"
        """,
    )
    assert "SLURM gives 4 GPUs a node" in said and said.endswith("code 2\n")
    assert (tmp_path / "run" / "logs" / "ended").read_text() == "2\n"
    assert not (tmp_path / "called").exists()


def judged(tmp_path: Path, code: int) -> list[str]:
    """Output of preflight if the step that judges ends with a code."""
    (tmp_path / "preflight").mkdir(exist_ok=True)
    (tmp_path / "preflight" / "bad_nodes").unlink(missing_ok=True)
    said = call(
        tmp_path,
        f"""
        step() {{
          case $* in
            *" judge "*) [[ $* == *--time=2* ]] && return {code} ;;
            *) echo megacov-report ;;
          esac
        }}
        address_of() {{ echo 10.0.0.1; }}
        logs=$run train_hosts=(n0 n1 n2 n3) server_hosts=(n4) train_step=() server_step=() preflight_port=1
        all_hosts=(n0 n1 n2 n3 n4)
        preflight || echo "code $?"
        """,
    )
    return said.splitlines()


def test_a_node_that_cannot_judge_is_bad(tmp_path: Path) -> None:
    assert judged(tmp_path, 0) == []
    assert judged(tmp_path, 11) == ["code 11"]
    assert judged(tmp_path, 3) == ["code 3"]  # no node has the model
    *said, code = judged(tmp_path, 143)
    assert "n0 is bad: it cannot judge the others (143)" in said[0] and code == "code 11"
    assert (tmp_path / "preflight" / "bad_nodes").read_text() == "n0\n"


def test_what_slurm_cannot_start_is_no_fault_of_a_node(tmp_path: Path) -> None:
    assert judged(tmp_path, 233) == ["code 233"]
    assert not (tmp_path / "preflight" / "bad_nodes").exists()


def network(tmp_path: Path, nodes: int, failing: str, more: str = "") -> str:
    """Output of the network check if all-reduces fail whose name and nodes match a pattern."""
    (tmp_path / "preflight").mkdir(exist_ok=True)
    return call(
        tmp_path,
        f"""
        failing='{failing}'
        all_reduce() {{ [[ ! "$*" =~ $failing ]]; }}
        touch $run/preflight/all_reduce_all.log
        logs=$run train_hosts=({" ".join(f"n{i}" for i in range(nodes))})
        {more}
        check_network && echo "code 0" || echo "code $?"
        """,
    )


@pytest.mark.parametrize(
    ("nodes", "failing", "code", "bad"),
    [
        (4, "none", 0, ""),
        (4, "n1", 11, "n1\n"),
        (4, "n1|n2", 11, "n1\nn2\n"),
        (4, "all|n1 n2", 8, ""),
        (4, ".", 8, ""),  # a mistake in the settings of the network
        (4, "all", 0, ""),  # the repetition passes
        (3, ".", 8, ""),
        (2, ".", 8, ""),
        (2, "n1", 11, "n1\n"),
        (2, "all", 8, ""),  # the link between the two
        (1, ".", 11, "n0\n"),
    ],
)
def test_who_is_at_fault_for_the_network(nodes: int, failing: str, code: int, bad: str, tmp_path: Path) -> None:
    said = network(tmp_path, nodes, failing)
    assert said.endswith(f"code {code}\n"), said
    named = tmp_path / "preflight" / "bad_nodes"
    assert (named.read_text() if named.exists() else "") == bad


def test_nobody_is_at_fault_where_the_job_is_asked_to_leave(tmp_path: Path) -> None:
    asked = """
        all_reduce() { if [[ $1 == all ]]; then return 1; fi; sleep 1; }
        trap leave USR1
        (sleep 0.3; kill -USR1 $$) &"""
    said = network(tmp_path, 4, "none", asked)
    assert "asked to leave" in said and said.endswith("code 0\n")
    assert not (tmp_path / "preflight" / "bad_nodes").exists()
