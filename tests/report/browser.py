"""A real headless Chromium, driven over the pipe of its DevTools protocol: no port, no driver package, no network."""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from select import select
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",  # CI containers run as root; the pages are the test's own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-extensions",
    "--disable-sync",
    "--hide-scrollbars",
    "--mute-audio",
    "--no-first-run",
    "--no-default-browser-check",
    "--remote-debugging-pipe",
)
PATIENCE = 60.0
"""Seconds until an answer counts as missing: a machine under load is slow to start a browser."""


def find_browser() -> str | None:
    """The browser's path: $RMKIT_TEST_BROWSER, else the first one on PATH."""
    return os.environ.get("RMKIT_TEST_BROWSER") or next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One browser with one page. complaints: console messages, exceptions, refused loads; requests: every address asked for."""

    def __init__(self, executable: str, profile: Path) -> None:
        # the browser reads commands from descriptor 3 and writes answers to 4
        read_commands, self._commands = os.pipe()
        self._answers, write_answers = os.pipe()
        flags = [*FLAGS, f"--user-data-dir={profile}", "about:blank"]
        redirect = f'exec "$0" "$@" 3<&{read_commands} 4>&{write_answers}'
        self._log = (profile.parent / f"{profile.name}.log").open("wb")
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, executable, *flags],
            pass_fds=(read_commands, write_answers),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._buffer = b""
        self._number = 0
        self._session: str | None = None
        self._loaded = False
        self.complaints: list[str] = []
        self.requests: list[str] = []
        target = next(t for t in self._ask("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self._ask("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            os.close(self._commands)
        os.close(self._answers)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def open(self, page: Path, *, width: int = 1200, height: int = 900, dark: bool = False, script: bool = True) -> None:
        """Load a page afresh, as a screen of this size and theme shows it."""
        self.complaints.clear()
        self.requests.clear()
        self.size(width, height)
        self.theme(dark)
        self._ask("Emulation.setScriptExecutionDisabled", value=not script)
        self._loaded = False
        self._ask("Page.navigate", url=page.as_uri())
        end = time.monotonic() + PATIENCE
        while not self._loaded:
            self._take(end)

    def size(self, width: int, height: int) -> None:
        """The screen; below 600 points it is a phone's."""
        phone = width < 600
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)

    def theme(self, dark: bool, media: str = "screen") -> None:
        """What prefers-color-scheme says, and which medium the style sheet is for."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def run(self, script: str) -> Any:
        """The value of an expression in the page, as JSON carries it."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def move(self, x: float, y: float) -> None:
        """Put the mouse there."""
        self._ask("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def picture(self, whole: bool = True) -> bytes:
        """A PNG of the page: all of it, or what the screen shows."""
        return base64.b64decode(self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"])

    def pdf(self) -> bytes:
        """The page as it is printed on A4."""
        self.theme(dark=True, media="print")
        return base64.b64decode(
            self._ask("Page.printToPDF", paperWidth=8.27, paperHeight=11.69, preferCSSPageSize=True)["data"]
        )

    # --- the protocol -------------------------------------------------------------------------------------------------

    def _ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        end = time.monotonic() + PATIENCE
        while True:
            answer = self._take(end)
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def _take(self, end: float) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        while b"\0" not in self._buffer:
            ready, _, _ = select([self._answers], [], [], max(0.0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            chunk = os.read(self._answers, 1 << 20)
            assert chunk, f"the browser ended: {Path(self._log.name).read_text(errors='replace')[-2000:]}"
            self._buffer += chunk
        text, _, self._buffer = self._buffer.partition(b"\0")
        message = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, event: str, said: dict[str, Any]) -> None:
        match event:
            case "Page.loadEventFired":
                self._loaded = True
            case "Runtime.consoleAPICalled":
                self.complaints.append(f"console.{said['type']}: {[each.get('value') for each in said['args']]}")
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(said["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(f"{said['entry']['level']}: {said['entry']['text']}")
            case "Network.requestWillBeSent":
                self.requests.append(said["request"]["url"])
            case _:
                pass
