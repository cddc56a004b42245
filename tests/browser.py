"""A browser without a window, for tests of pages: spoken to over its own pipes, so that no driver is needed."""

import contextlib
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_PATIENCE = 30.0
"""Seconds for an answer."""


class Browser:
    """A page in a browser; everything it asked for over the network and complained of is kept."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._waiting, self._numbers = write, read, b"", itertools.count(1)
        self.requests, self.complaints, self._session = [], [], None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.ask(f"{domain}.enable")

    def ask(self, method, **params):
        """Send a command and return its answer; events on the way are kept."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        os.write(
            self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while (answer := self._next()).get("id") != number:
            self._keep(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _next(self):
        until = time.monotonic() + _PATIENCE
        while b"\0" not in self._waiting:
            ready, _, _ = select.select([self._read], [], [], max(0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            self._waiting += os.read(self._read, 2**20)
        message, _, self._waiting = self._waiting.partition(b"\0")
        return json.loads(message)

    def _keep(self, event):
        told = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"])
        elif event.get("method") == "Runtime.consoleAPICalled":
            self.complaints.append([one.get("value") for one in told["args"]])
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(told["entry"]["text"])

    def open(self, path: Path, *, width: int = 1200, height: int = 900) -> None:
        """Show a page, and wait until its script has done its part."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.ask("Page.navigate", url=path.resolve().as_uri())
        until = time.monotonic() + _PATIENCE
        while self.run("document.documentElement?.dataset.ready") != "yes":
            assert time.monotonic() < until, f"the page is not ready: {self.complaints}"
            time.sleep(0.02)

    def run(self, script: str):
        """Return what a script says of the page."""
        answer = self.ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def texts(self, selector: str) -> list[str]:
        """Return the words of each element that is shown."""
        shown = "[...document.querySelectorAll({})].filter((one) => one.checkVisibility()).map((one) => one.innerText)"
        return self.run(shown.format(json.dumps(selector)))

    def middle(self, selector: str) -> tuple[float, float]:
        """Bring an element to sight and return where its middle is."""
        return tuple(
            self.run(
                f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
                "one.scrollIntoView({block: 'center'}); const at = one.getBoundingClientRect();"
                "return [at.left + at.width / 2, at.top + at.height / 2]; })()"
            )
        )

    def point(self, x: float, y: float) -> None:
        """Move the pointer."""
        self.ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Press and release the mouse on an element."""
        x, y = self.middle(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Type into a field, in place of what it holds."""
        self.click(selector)
        self.run(f"document.querySelector({json.dumps(selector)}).select()")
        self.ask("Input.insertText", text=text)


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """Start a browser whose files lie in `folder`; skip where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser: looked for {', '.join(NAMES)} (apt-get install chromium)")
    (from_test, write), (read, to_test) = os.pipe(), os.pipe()
    headless = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--remote-debugging-pipe")
    quiet = ("--no-first-run", "--disable-extensions", "--disable-background-networking", f"--user-data-dir={folder}")
    # the browser reads commands from descriptor 3 and answers on 4
    started = subprocess.Popen(
        ["bash", "-c", f'exec 3<&{from_test} 4>&{to_test}; exec "$@"', "bash", found, *headless, *quiet],
        pass_fds=(from_test, to_test), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(from_test)
    os.close(to_test)
    try:
        yield Browser(write, read)
    finally:
        os.close(write)
        os.close(read)
        started.terminate()
        started.wait(timeout=20)
