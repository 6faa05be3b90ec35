"""Debian's Chromium without a window, driven over DevTools' pipe: no driver, no port and no package is needed.

A page's console messages, exceptions, refusals of its content security policy and requests are kept.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAME = "chromium"
_DEADLINE_S = 60.0
_OPTIONS = (
    "--headless",
    "--no-sandbox",  # Chromium's own sandbox refuses root
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-extensions",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Chromium reads commands at file 3 and writes answers at file 4.
_START = (
    "import os, sys; a, b = map(int, sys.argv[1:3]); os.dup2(a, 3); os.dup2(b, 4); os.execvp(sys.argv[3], sys.argv[3:])"
)


class PageError(AssertionError):
    """The browser refused a command, or an expression raised an exception."""


class Browser:
    """One browser with one page.

    problems: what the page's console, exceptions and policy have complained about, since the page was opened.
    requests: addresses that the page has asked for.
    """

    def __init__(self, process: subprocess.Popen[bytes], commands: int, answers: int) -> None:
        """Attach to the browser's page."""
        self._process, self._commands, self._answers = process, commands, answers
        self._number, self._session, self._unread = 0, None, b""
        self.problems: list[str] = []
        self.requests: list[str] = []
        self._loaded = False
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, address: str, *, width: int = 1280, height: int = 900, is_dark: bool = False) -> None:
        """Open a page and wait until it has loaded."""
        self.problems, self.requests, self._loaded = [], [], False
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.set_media("", is_dark=is_dark)
        self.send("Page.navigate", url=address)
        deadline = time.monotonic() + _DEADLINE_S
        while not self._loaded:
            self._receive(deadline)

    def set_media(self, media: str, *, is_dark: bool = False) -> None:
        """Show the page as on paper ("print") or as on a screen ("")."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self.send("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, which may be a promise."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise PageError(str(answer["exceptionDetails"].get("exception", answer["exceptionDetails"])))
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press and release a key, such as "ArrowRight" or "Tab", wherever the focus is."""
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=_CODES[key])

    def wait(self, script: str) -> None:
        """Wait until an expression is true, at most a minute."""
        deadline = time.monotonic() + _DEADLINE_S
        while not self.run(script):
            assert time.monotonic() < deadline, f"not true within a minute: {script}"
            time.sleep(0.1)

    def screenshot(self, path: Path, *, clip: dict[str, float] | None = None) -> None:
        """Write what the page shows, or a part of it in its own coordinates, as PNG."""
        more = {"clip": clip | {"scale": 1}, "captureBeyondViewport": True} if clip else {}
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png", **more)["data"]))

    def pdf(self) -> bytes:
        """The page on paper."""
        return base64.b64decode(self.send("Page.printToPDF", printBackground=True)["data"])

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command of DevTools and wait for its answer."""
        self._number += 1
        number = self._number
        message = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._commands, data) :]
        deadline = time.monotonic() + _DEADLINE_S
        while (answer := self._receive(deadline)).get("id") != number:
            pass
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{NAME} has not answered within {_DEADLINE_S:.0f} s"
            part = os.read(self._answers, 1 << 20)
            assert part, f"{NAME} has ended with {self._process.poll()}"
            self._unread += part
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, details: dict[str, Any]) -> None:
        if event == "Page.loadEventFired":
            self._loaded = True
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])
        elif event == "Runtime.exceptionThrown":
            self.problems.append(str(details["exceptionDetails"]))
        elif event == "Runtime.consoleAPICalled":
            self.problems.append(f"console.{details['type']}: {details['args']}")
        elif event == "Log.entryAdded":
            self.problems.append(str(details["entry"]["text"]))


_CODES = {
    "Tab": 9,
    "Enter": 13,
    "End": 35,
    "Home": 36,
    "ArrowLeft": 37,
    "ArrowUp": 38,
    "ArrowRight": 39,
    "ArrowDown": 40,
}


def why_no_browser() -> str:
    """Why there is no browser here; "" if there is one."""
    return "" if shutil.which(NAME) else f"there is no {NAME}; `make try-browser` installs it where it can"


@contextmanager
def browsing() -> Iterator[Browser]:
    """One browser, until the context is left."""
    to_browser, from_browser = os.pipe(), os.pipe()
    # Beyond 3 and 4, so that neither end is overwritten by the other's move there.
    theirs = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
    os.close(to_browser[0]), os.close(from_browser[1])
    with tempfile.TemporaryDirectory(prefix="megacov-browser-", ignore_cleanup_errors=True) as profile:
        command = [sys.executable, "-c", _START, *map(str, theirs), NAME, *_OPTIONS, f"--user-data-dir={profile}"]
        with open(Path(profile) / "log", "wb") as log:
            process = subprocess.Popen([*command, "about:blank"], pass_fds=theirs, stdout=log, stderr=log)
        for end in theirs:
            os.close(end)
        browser = None
        try:
            browser = Browser(process, to_browser[1], from_browser[0])
            yield browser
        finally:
            with suppress(OSError, AssertionError):
                if browser is not None:
                    browser._session = None
                    browser.send("Browser.close")
            os.close(to_browser[1])
            os.close(from_browser[0])
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
