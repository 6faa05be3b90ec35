"""`megacov samples` on a real terminal: what keys do, what the screen says, and how the terminal is left."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from tests.support.sample_files import old_line, sample_line, write_step
from tests.support.terminals import Screen, TerminalCommand, on_terminal

HOSTILE = "\x1b[2J\x1b]0;title\x07\x9b31m\x1bP$q\x1b\\\r\x08\x00\x7f\u202e\u200b\ud83d"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Three steps: 2, 3 and 1 samples; the second sample of step 2 is cut, and only step 3 is about apples."""
    write_step(tmp_path, 1, sample_line(reward=0.0), sample_line(reward=1.0))
    cut = sample_line(reward=0.5, finish_reason="length", notable=["cut at the length limit"], sample=9, source="gsm8k")
    write_step(tmp_path, 2, sample_line(reward=0.0), cut, sample_line(("no", " words\n", "at", " all"), reward=0.25))
    write_step(tmp_path, 3, sample_line(prompt="How many apples?", reward=1.0))
    return tmp_path


def is_left(screen: Screen) -> bool:
    return screen.modes.get("?1049") == "l"


def assert_left_as_found(command: TerminalCommand) -> None:
    assert command.mode == command.first_mode
    assert command.screen.modes == {"?1049": "l", "?7": "h", "?25": "h"}
    assert command.screen.strange == []


def test_keys_lead_through_tokens_samples_and_steps(run: Path) -> None:
    with on_terminal("samples", str(run), width=100) as command:
        text = command.wait("token 1 of 5")
        assert text.startswith("step 3 (3 of 3)  sample 1 of 1  reward 1  5 tokens") and "six times seven is 42" in text
        assert (
            'token 1 of 5, not in the loss  "six"' in text
            and "log-prob 0 (p 1)  entropy 0  covariance 0  mismatch unknown" in text
        )
        text = command.press("\x1b[C\x1b[C", '" seven"')
        assert "log-prob -1.099 (p 0.333)  entropy 0.5  covariance 0.2" in text
        # Above 0.7 nats lies the fourth token; the fifth was selected.
        assert "entropy 0.75" in command.press(".", '" is"')
        assert "selected:  not selected  selected" in command.press("4.", 'token 5 of 5, selected  " 42"')
        command.press(".", "No later token of this sample is selected.")
        assert "(2 of 3)  sample 3 of 3  reward 0.25" in command.press("p", "step 2")
        command.press("p", "row 9 of the batch")
        assert "source gsm8k" in command.screen.text and "cut at the length limit, " in command.screen.text
        command.press("[", "step 1 (1 of 3)  sample 1 of 2")
        command.press("[", "There is no further sample.")
        command.press("G", "token 5 of 5")
        command.press("?", "any key goes back")
        command.press(" ", "token 5 of 5")
        command.press("q", is_left)
        assert command.end() == 0
        assert_left_as_found(command)


def test_filters_and_search_run_over_all_steps(run: Path) -> None:
    with on_terminal("samples", str(run), "--reward", "0:0.5", width=100) as command:
        assert "filter: reward=0:0.5" in command.wait("step 2 (2 of 3)  sample 1 of 3")
        command.press("f", "filter: reward=0:0.5")
        command.press("\x15truncated source=gsm8k\r", "sample 1 of 1 that pass, 2 hidden  reward 0.5")
        command.press("n", "No further sample passes the filter.")
        command.press("f\x15reward=5\r", "No sample passes that filter: it is left as it was.")
        command.press("f\x15colour=red\r", "'colour=red' is not a condition")
        command.press("f\x15reward=2:1\r", "reward is '2:1', whose start 2 is above its end 1: exchange them.")
        command.press("x", "sample 2 of 3")
        command.press("/APPLE\x7f", "search: APPL")
        command.press("\r", "How many apples?")
        command.press("/\x15words\r", "at all")
        command.press("f", "filter: text=words")
        command.press("\x1b", lambda screen: "filter: text=words" not in screen.lines[-1])
        os.kill(command.pid, signal.SIGTERM)
        assert command.end() == -signal.SIGTERM
        assert_left_as_found(command)


def test_a_run_that_writes_is_followed(run: Path) -> None:
    with on_terminal("samples", str(run)) as command:
        command.wait("step 3 (3 of 3)")
        write_step(run, 4, sample_line(("new",)))
        command.press("r", "4 steps, 1 more than before.")
        command.press("]", "step 4 (4 of 4)")
        (run / "samples" / "step_000003.jsonl").unlink()
        with (run / "samples" / "step_000002.jsonl").open("a") as file:
            file.write('{"prompt": "half')
        command.press("[", lambda screen: "step 2 (" in screen.text and "000002.jsonl, line 4" in screen.text)
        shutil.rmtree(run / "samples")
        command.press("r", "it has not finished a step")
        assert "at all" in command.screen.text or "six times" in command.screen.text
        command.press("\x04", is_left)
        assert command.end() == 0


def test_no_control_character_reaches_the_terminal(tmp_path: Path) -> None:
    line = sample_line(("safe", HOSTILE, "end"), prompt=HOSTILE, answer=HOSTILE, source=HOSTILE, notable=[HOSTILE])
    write_step(tmp_path, 1, line | {"response": HOSTILE}, old_line(HOSTILE, answer=HOSTILE, reward=0.0))
    # Half of a pair is no character: the reader refuses such a line, so a second file does without it.
    write_step(
        tmp_path,
        2,
        *(
            {key: _without_surrogate(value) for key, value in each.items()}
            for each in (line, old_line(HOSTILE, answer=HOSTILE, reward=0.0))
        ),
    )
    with on_terminal("samples", str(tmp_path), width=130, height=30) as command:
        text = command.wait("token 1 of 3")
        shown = r"\x1b[2J\x1b]0;title\x07\x9b31m\x1bP$q\x1b\\r\x08\x00\x7f\u202e\u200b"
        assert text.count(shown) >= 4, text
        command.press("\x1b[C", "token 2 of 3")
        command.press("c", "[*|")
        command.press("n", "Plain text: no values of its tokens")
        command.press("/" + "\x1bx\x1b", lambda screen: "search" not in screen.lines[-1])
        command.press("q", is_left)
        assert command.end() == 0
        assert_left_as_found(command)


def _without_surrogate(value: object) -> object:
    if isinstance(value, list):
        return [_without_surrogate(each) for each in value]
    return value.replace("\ud83d", "") if isinstance(value, str) else value


def test_any_size_and_its_changes(run: Path) -> None:
    with on_terminal("samples", str(run), width=1, height=1) as command:
        command.wait("s")
        for width, height, words in (
            (3, 2, "?"),
            (20, 4, "step 3 (3 of 3)"),
            (11, 12, " seven is"),
            (200, 60, "log-prob"),
            (40, 8, "token 1 of"),
        ):
            command.resize(width, height)
            command.wait(words)
            command.press("\x1b[B\x1b[6~\x1b[H", lambda screen: True)
        command.press("q", is_left)
        assert command.end() == 0
        assert_left_as_found(command)


def test_without_colour_levels_are_written(run: Path) -> None:
    with on_terminal("samples", str(run), NO_COLOR="1") as command:
        text = command.wait("[2| seven][3| is][3*| 42]")
        assert "[3|>0.7]" in text and "[*|selected]" in text
        assert command.screen.look_of("[3| is]") == "1;4" and command.screen.look_of("[2| seven]") == "4"
        assert command.screen.look_of("six") == "7" or "7" in command.screen.look_of("six").split(";")
        command.press("c", lambda screen: "six times seven is 42" in screen.text)
        assert "48;5;" in command.screen.look_of(" is")
        command.press("\x03", is_left)
        assert command.end() == 130
        assert_left_as_found(command)


@pytest.mark.parametrize(("ignored", "code"), [((), -signal.SIGHUP), ((signal.SIGHUP,), 0)], ids=["hup", "nohup"])
def test_a_lost_terminal_ends_it(run: Path, ignored: tuple[int, ...], code: int) -> None:
    with on_terminal("samples", str(run), ignored=ignored) as command:
        command.wait("token 1 of 5")
        command.hang_up()
        assert command.end() == code


def test_a_terminal_that_cannot_be_drawn_on_gets_text(run: Path) -> None:
    with on_terminal("samples", str(run), TERM="dumb") as command:
        assert command.end() == 0
        assert "[3| is]" in command.screen.text and command.screen.modes == {} and command.screen.strange == []


@pytest.mark.skipif(shutil.which("bash") is None, reason="job control needs bash")
def test_ctrl_z_lends_the_terminal_to_the_shell(run: Path) -> None:
    """A shell of the viewer's terminal sees the mode it had, and the viewer draws itself anew after `fg`."""
    with on_terminal("samples", str(run), shell=True) as command:
        command.wait("token 1 of 5")
        command.press("\x1a", is_left)
        # The shell's own settings of the terminal, which is in cooked mode while a command runs.
        assert "isig icanon" in command.press("stty -a | grep -o 'isig icanon'; echo 'a'sked\r", "asked")
        command.press("fg\r", lambda screen: not is_left(screen) and "token 1 of 5" in screen.text)
        assert '" times"' in command.press("\x1b[C", "token 2 of 5")
        command.press("q", is_left)
        command.press("exit 7\r", lambda screen: True)
        assert command.end() == 7
