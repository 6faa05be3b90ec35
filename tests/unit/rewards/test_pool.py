"""A pool of verifier processes: whatever a verifier does becomes a reward or a counted failure, and nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from megacov.errors import ConfigError, RewardError
from megacov.rewards import guard
from megacov.rewards.call import Outcome
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import check_verifier
from megacov.rewards.settings import VerifierSettings
from tests.support.command import still_there
from tests.support.unruly import ACTIONS
from tests.support.verifier_pool import judge, opened

UNRULY = "tests.support.unruly"


def sleepers() -> list[psutil.Process]:
    """Processes that `leaves a process` has started and that have not ended."""
    return [each for each in psutil.process_iter() if _is_sleeper(each)]


def _is_sleeper(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        return process.cmdline() == ["sleep", "1234.5"] and process.cwd() == str(Path.cwd())
    return False


def test_whatever_a_verifier_does_is_a_reward_or_a_failure(tmp_path: Path) -> None:
    with opened(f"{UNRULY}:judge", tmp_path, num_workers=3, timeout_s=2.0) as pool:
        # The last one again and again: processes that were replaced judge like the others.
        texts = [*ACTIONS, *["true"] * 9]
        got = dict(zip(texts, judge(pool, texts), strict=True))
        assert {text: (each.reward, each.failure) for text, each in got.items()} == {
            text: (reward, failure) for text, (_, reward, failure) in ACTIONS.items()
        }
    assert still_there(sleepers()) == []
    assert "SystemExit: 3" in got["sys.exit"].reason
    assert got["os._exit"].reason == "ended its process (exit code 0)"
    assert got["killpg"].reason == "ended its process (SIGKILL)"
    assert got["hangs"].reason == "did not return within rewards.timeout_s = 2 s"
    assert all(len(each.reason) < 600 for each in got.values())
    assert "y" * 100 in (tmp_path / "verifier.log").read_text()


def test_a_log_in_a_folder_that_is_made_later_has_what_the_verdicts_print(tmp_path: Path) -> None:
    later = tmp_path / "later"
    with opened(f"{UNRULY}:judge", later, is_quiet=True, num_workers=2) as pool:
        assert not later.exists()
        later.mkdir()
        assert [each.reward for each in judge(pool, ["writes everywhere"] * 3)] == [0.5] * 3
    assert "y" * 100 in (later / "verifier.log").read_text()


def test_verdicts_that_are_sent_together_fail_one_by_one(tmp_path: Path) -> None:
    texts = [*["true"] * 40, "os._exit", "true", "hangs", "true", "nan", "killpg", "true"]
    with opened(f"{UNRULY}:judge", tmp_path, num_workers=1, timeout_s=0.5) as pool:
        assert [(each.reward, each.failure) for each in judge(pool, texts)] == [ACTIONS[text][1:] for text in texts]


def test_an_async_verifier_fails_in_the_same_ways(tmp_path: Path) -> None:
    texts = ("true", "nan", "sys.exit", "CancelledError", "KeyboardInterrupt", "os._exit", "np.float32")
    with opened(f"{UNRULY}:judge_later", tmp_path) as pool:
        got = [(each.reward, each.failure) for each in judge(pool, texts)]
    assert got == [ACTIONS[text][1:] for text in texts]


def test_a_verifier_gets_what_it_asks_for_and_a_clean_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    values: dict[str, Any] = {
        "text": "lone \udc80 surrogate",
        "answer": "42",
        "prompt": "short",
        "row": {"level": [1, None, 10**30]},
        "finish_reason": "stop",
        "num_tokens": 7,
    }

    async def one(pool: VerifierPool) -> Outcome:
        judged = await pool.judge(values)
        await pool.aclose()
        return judged.outcome

    with opened(f"{UNRULY}:report", tmp_path) as pool:
        assert set(check_verifier(VerifierSettings(f"{UNRULY}:report"), timeout_s=60.0).wanted) == set(values)
        outcome = asyncio.run(one(pool))
    assert outcome == Outcome(0.0, "raised", f"raised ValueError: {(*values.values(), [], [], True)!r}")


def test_several_verifiers_share_the_processes(tmp_path: Path) -> None:
    async def run(pool: VerifierPool) -> list[float]:
        try:
            given = [("17", 0), ("8+9", 1), ("yes", 2), ("no", 2), ("17", 1)]
            values = {"answer": "17", "num_tokens": 5}
            judged = [pool.judge({"text": text, **values}, verifier=place) for text, place in given]
            return [each.outcome.reward for each in await asyncio.gather(*judged)]
        finally:
            await pool.aclose()

    prepares = VerifierSettings("tests.support.answer_checks:prepares", {"word": "yes"})
    verifiers = (VerifierSettings("tests.support.answer_checks:judge"), VerifierSettings("sum_pairs"), prepares)
    with opened(verifiers, tmp_path, num_workers=2) as pool:
        ready = pool.wait_for_first()
        assert [each.wanted for each in ready] == [("text", "answer")] * 2 + [("text", "answer", "num_tokens")]
        assert [each.checks_answers for each in ready] == [True, True, False]
        assert asyncio.run(run(pool)) == [1.0, 1.0, 5.0, 0.0, 0.0]


def test_the_event_loop_goes_on_while_verdicts_are_awaited(tmp_path: Path) -> None:
    """Each verdict waits for something that only the event loop does."""

    async def run(pool: VerifierPool) -> list[float]:
        paths = [tmp_path / f"{number}" for number in range(6)]
        verdicts = [asyncio.create_task(pool.judge({"text": str(path), "answer": ""})) for path in paths]
        for path in paths:
            await asyncio.sleep(0.01)
            path.touch()
        judged = await asyncio.gather(*verdicts)
        await pool.aclose()
        return [each.outcome.reward for each in judged]

    with opened(f"{UNRULY}:wait_for_file", tmp_path, num_workers=2) as pool:
        assert asyncio.run(run(pool)) == [1.0] * 6


def test_a_cancelled_verdict_does_not_spoil_the_next(tmp_path: Path) -> None:
    async def run(pool: VerifierPool) -> float:
        first = asyncio.create_task(pool.judge({"text": str(tmp_path / "first"), "answer": ""}))
        await asyncio.sleep(0.05)
        first.cancel()
        await asyncio.wait([first])
        for name in ("first", "second"):
            (tmp_path / name).touch()
        judged = await pool.judge({"text": str(tmp_path / "second"), "answer": ""})
        await pool.aclose()
        return judged.outcome.reward

    with opened(f"{UNRULY}:wait_for_file", tmp_path) as pool:
        assert asyncio.run(run(pool)) == 1.0


def _write(folder: Path, name: str, source: str, monkeypatch: pytest.MonkeyPatch) -> str:
    (folder / f"{name}.py").write_text(f"def judge(text, answer): return 1.0\n{source}\n", encoding="ascii")
    monkeypatch.syspath_prepend(str(folder))
    return f"{name}:judge"


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("raise KeyboardInterrupt", "importing .* raised KeyboardInterrupt"),
        ("import sys; sys.exit(3)", "SystemExit: 3"),
        ("import os; os._exit(0)", r"ended while importing it \(exit code 0\)"),
        ("import time; time.sleep(1000)", "not imported within rewards.start_timeout_s = 1 s"),
    ],
)
def test_an_import_that_fails_in_any_way_is_a_config_error(
    source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = _write(tmp_path, f"import_{abs(hash(source))}", source, monkeypatch)
    with pytest.raises(ConfigError, match=words):
        check_verifier(VerifierSettings(name), timeout_s=1.0 if "sleep" in source else 60.0)


def _kill_verifier(process: psutil.Process) -> None:
    _kill(process.children()[0])


def _kill_guard(process: psutil.Process) -> None:
    _kill(process)


def _kill(process: psutil.Process) -> None:
    process.kill()
    deadline = time.monotonic() + 10
    with contextlib.suppress(psutil.NoSuchProcess):  # once its parent has reaped it
        while process.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def _signal_both(process: psutil.Process) -> None:
    """As a scheduler signals all processes of a job."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
        for each in (process, *process.children()):
            each.send_signal(number)


@pytest.mark.parametrize("disturb", [_kill_verifier, _kill_guard, _signal_both])
def test_a_process_disturbed_while_idle_costs_no_verdict(
    disturb: Callable[[psutil.Process], None], tmp_path: Path
) -> None:
    logs = tmp_path / "run" / "logs"
    logs.mkdir(parents=True)

    async def run(pool: VerifierPool) -> list[Outcome]:
        outcomes = [(await pool.judge({"text": "true", "answer": ""})).outcome]
        first = psutil.Process(pool._processes[0].process.pid)
        verifier = first.children()
        shutil.move(tmp_path / "run", tmp_path / "renamed")  # as a user may rename a run
        disturb(first)
        outcomes.append((await pool.judge({"text": "true", "answer": ""})).outcome)
        is_replaced = disturb is not _signal_both
        assert (first.pid != pool._processes[0].process.pid) == is_replaced
        assert not is_replaced or still_there(verifier) == []
        await pool.aclose()
        return outcomes

    with opened(f"{UNRULY}:judge", logs) as pool:
        assert asyncio.run(run(pool)) == [Outcome(1.0), Outcome(1.0)]


def test_children_are_found_with_and_without_the_kernels_list() -> None:
    with subprocess.Popen(["sleep", "1000"]) as process:
        try:
            assert process.pid in guard._children() and process.pid in guard._children_by_parent()
            assert os.getpid() not in guard._children_by_parent()
        finally:
            process.kill()


def test_a_late_answer_is_not_taken_for_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "import time\ndef judge(text, answer):\n    time.sleep(float(text))\n    return 7.0 + float(text)\n"
    name = _write(tmp_path, "late", source, monkeypatch)
    with opened(name, tmp_path, timeout_s=1.0) as pool:
        late, following = judge(pool, ["1.5", "0"])
    assert (late.reward, late.failure) == (0.0, "timeout") and following == Outcome(7.0)


def test_a_verifier_may_print_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "def judge(text, answer):\n    print(text, flush=True)\n    return 1.0\n"
    name = _write(tmp_path, "prints", source, monkeypatch)
    (tmp_path / "verifier.log").symlink_to("/dev/full")
    with opened(name, tmp_path) as pool:
        assert judge(pool, ["true"]) == [Outcome(1.0)]


def test_a_pool_that_cannot_be_refilled_fails_all_verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = tmp_path / "imported"
    source = f"import pathlib, os\nif pathlib.Path({str(mark)!r}).exists(): raise OSError('no more')\n"
    name = _write(tmp_path, "imported_once", source, monkeypatch)
    with opened(name, tmp_path) as pool:
        mark.touch()
        os.kill(psutil.Process(pool._processes[0].process.pid).children()[0].pid, signal.SIGKILL)
        with pytest.raises(RewardError, match="could not be started again: .*no more"):
            judge(pool, ["true"] * 3)


_PARENT = f"""
import asyncio, pathlib, sys
from megacov.rewards.pool import VerifierPool
from megacov.rewards.process import ProcessSettings
from megacov.rewards.settings import VerifierSettings

async def main():
    settings = ProcessSettings(verifiers=(VerifierSettings("{UNRULY}:judge"),))
    pool = VerifierPool(settings, num_workers=1, timeout_s=60.0, start_timeout_s=60.0)
    pool.start()
    await pool.judge({{"text": "leaves a process and hangs", "answer": ""}})

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems cannot find orphans")
def test_a_killed_trainer_leaves_nothing(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", _PARENT])
    try:
        deadline = time.monotonic() + 60
        everything: list[psutil.Process] = []
        while not any(map(_is_sleeper, everything)):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
            everything = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.kill()
        process.wait()
    assert len(everything) == 3
    assert still_there(everything) == []
