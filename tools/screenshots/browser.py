"""A headless Chromium driven over the WebDriver protocol with nothing but requests; no wait is without a limit."""

import base64
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

import requests

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
#: Names are never looked up: a page that asks for something elsewhere is refused at once instead of hanging.
ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-default-apps", "--disable-extensions",
    "--disable-sync", "--disable-breakpad", "--mute-audio", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]  # fmt: skip


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Browser:
    """`with Browser(folder) as browser: browser.open(url)`.

    Args:
        folder: profile and log of the driver.
        wait_s: each wait fails after so long, whatever it waits for.
        limit_s: the whole visit fails after so long. At the end the driver's process group is killed.
    """

    def __init__(self, folder: Path, size: tuple[int, int] = (1500, 950), wait_s: float = 60.0, limit_s: float = 240.0):
        self.folder, self.size, self.wait_s, self.port = folder, size, wait_s, free_port()
        self.until = time.monotonic() + limit_s

    def __enter__(self) -> "Browser":
        with open(self.folder / "chromedriver.txt", "wb") as log:
            self.driver = subprocess.Popen(
                [str(DRIVER), f"--port={self.port}"], stdout=log, stderr=log, start_new_session=True
            )
        self.base = f"http://127.0.0.1:{self.port}"
        try:
            self.wait(self._ready, "chromedriver")
            options = {
                "binary": CHROMIUM,
                "args": [*ARGUMENTS, f"--user-data-dir={self.profile}", f"--window-size={self.size[0]},{self.size[1]}"],
            }
            limits = {"script": 20_000, "pageLoad": 60_000, "implicit": 0}
            wanted = {"goog:chromeOptions": options, "pageLoadStrategy": "none", "timeouts": limits}
            session = self._call("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        except BaseException:
            self.__exit__()
            raise
        self.base += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *exc: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.driver.pid, signal.SIGKILL)
        self.driver.wait(20)
        until = time.monotonic() + 30
        while (left := self.left()) and time.monotonic() < until:  # a browser's children may have left the group
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)  # a process that was killed is there for a moment yet

    @property
    def profile(self) -> Path:
        return self.folder / "profile"

    def left(self) -> list[int]:
        """Processes that name this browser's own profile."""
        found = []
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            with contextlib.suppress(OSError):
                if str(self.profile).encode() in path.read_bytes():
                    found.append(int(path.parent.name))
        return found

    def _ready(self) -> bool:
        try:
            return bool(requests.get(f"{self.base}/status", timeout=5).json()["value"]["ready"])
        except requests.RequestException:
            return False

    def _call(self, method: str, path: str, body: dict | None = None):
        left = min(self.wait_s, self.until - time.monotonic())
        assert left > 0, "the visit took too long"
        reply = requests.request(method, self.base + path, json=body if method == "POST" else None, timeout=left)
        value = reply.json()["value"]
        if reply.status_code != 200:
            raise RuntimeError(str(value)[:2000])
        return value

    def wait(self, holds, what: str, wait_s: float | None = None):
        """The value of `holds()` once it is true; a page that is being redrawn (RuntimeError) is asked again."""
        deadline = min(self.until, time.monotonic() + (wait_s or self.wait_s))
        while True:
            trouble = ""
            try:
                if found := holds():
                    return found
            except RuntimeError as error:
                trouble = f" ({error})"
            assert time.monotonic() < deadline, f"never saw {what}{trouble}"
            time.sleep(0.2)

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        return self.run("return document.body ? document.body.innerText : ''")

    def wait_for_text(self, *wanted: str) -> str:
        seen = ""

        def there() -> bool:
            nonlocal seen
            seen = self.text()
            return all(w in seen for w in wanted)

        try:
            self.wait(there, " and ".join(wanted))
        except AssertionError as error:
            raise AssertionError(f"{error}; the page says {seen[-600:]!r}") from None
        return seen

    def click(self, selector: str, text: str | None = None) -> None:
        """A real click on the last element of those that match and, where given, show exactly `text`."""
        script = """
            const found = [...document.querySelectorAll(arguments[0])].filter(e => e.getClientRects().length > 0 &&
                (arguments[1] === null || (e.innerText || '').trim() === arguments[1]));
            return found.length ? found[found.length - 1] : null;
        """

        def clicked() -> bool:
            element = self.run(script, selector, text)
            if element is None:
                return False
            self._call("POST", f"/element/{next(iter(element.values()))}/click", {})
            return True

        self.wait(clicked, f"{text or selector} to click")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
