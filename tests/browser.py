"""A headless Chromium for the tests that need one, driven through its DevTools protocol on a pair of pipes."""

import json
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system import find_or_install

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE = 60  # seconds that an answer may take on a busy machine
OPTIONS = (
    "--headless",
    "--remote-debugging-pipe",
    "--window-size=1280,900",
    "--no-first-run",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def browser_or_skip() -> str:
    """Chromium's command; as root in CI it is installed, elsewhere the test is skipped with the command to run."""
    browser = find_or_install(NAMES, "chromium")
    if browser is None:
        pytest.skip("no Chromium; install it (on Debian: apt-get install chromium)")
    return browser


class Page:
    """One tab. events: the browser's events since it was opened, as (method, parameters)."""

    def __init__(self, commands: int, answers: int):
        self.events: list[tuple[str, dict]] = []
        self._commands, self._answers = commands, answers
        self._read, self._number, self._session = b"", 0, {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Page.setLifecycleEventsEnabled", enabled=True)

    def call(self, method: str, **parameters) -> dict:
        """The result of one command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters, **self._session}
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def open(self, address: str) -> None:
        """Load a page, also if only the part after # differs."""
        self.call("Page.navigate", url="about:blank")
        loader = self.call("Page.navigate", url=address)["loaderId"]
        while not any(
            each.get("loaderId") == loader and each.get("name") == "load" for each in self.told("Page.lifecycleEvent")
        ):
            self._next()

    def told(self, method: str) -> list[dict]:
        """The parameters of every event of that kind."""
        return [parameters for name, parameters in self.events if name == method]

    def evaluate(self, expression: str):
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true."""
        self.evaluate(
            f"new Promise(done => {{ const look = () => {expression} ? done() : setTimeout(look, 5); look() }})"
        )

    def click(self, selector: str) -> None:
        """Press the mouse in the middle of the first element that `selector` finds."""
        element = f"document.querySelector({json.dumps(selector)})"
        self.evaluate(f"{element}.scrollIntoView({{block: 'center', behavior: 'instant'}})")
        x, y, width, height = self.evaluate(
            f"(box => [box.x, box.y, box.width, box.height])({element}.getBoundingClientRect())"
        )
        assert width and height, f"{selector} is not shown"
        place = {"x": x + width / 2, "y": y + height / 2, "button": "left", "buttons": 1, "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, **place)

    def press(self, key: str, code: int, text: str = "") -> None:
        """Press and release a key; code: its Windows virtual key code."""
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, text=text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)

    def _next(self) -> dict:
        """The browser's next message; events are kept."""
        while b"\0" not in self._read:
            assert select.select([self._answers], [], [], PATIENCE)[0], f"no answer from Chromium in {PATIENCE} s"
            block = os.read(self._answers, 1 << 20)
            assert block, "Chromium has ended"
            self._read += block
        line, _, self._read = self._read.partition(b"\0")
        message = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message


@contextmanager
def open_browser(folder: Path) -> Iterator[Page]:
    """A Chromium with its profile and pipes in `folder`; it ends with the block."""
    for name in ("commands", "answers"):
        os.mkfifo(folder / name)
    options = [*OPTIONS, f"--user-data-dir={folder / 'profile'}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    # Chromium reads commands from descriptor 3 and answers on 4
    shell = ["sh", "-c", 'exec "$@" 3<"$0/commands" 4>"$0/answers"', str(folder), browser_or_skip(), *options]
    process = subprocess.Popen(shell, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    commands, answers = os.open(folder / "commands", os.O_WRONLY), os.open(folder / "answers", os.O_RDONLY)
    try:
        yield Page(commands, answers)
    finally:
        os.close(commands)
        os.close(answers)
        os.killpg(process.pid, signal.SIGKILL)  # its own group, so the browser's helpers end too
        process.wait()
