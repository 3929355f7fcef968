"""A headless Chromium driven over the WebDriver protocol; nothing but requests is needed."""

import base64
import shutil
import subprocess
import time
from pathlib import Path

import requests
from mlflow_server import free_port

DRIVER = shutil.which("chromedriver")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]


class Browser:
    """`with Browser(folder) as browser: browser.open(url)`; every wait fails after `timeout_s`."""

    def __init__(self, folder: Path, width: int = 1500, height: int = 950, timeout_s: float = 120.0) -> None:
        self.folder, self.size, self.timeout_s, self.port = folder, (width, height), timeout_s, free_port()

    def __enter__(self) -> "Browser":
        with open(self.folder / "chromedriver.txt", "wb") as log:
            self.driver = subprocess.Popen([str(DRIVER), f"--port={self.port}"], stdout=log, stderr=log)
        self.base = f"http://127.0.0.1:{self.port}"
        self.wait(self._ready, "chromedriver")
        profile = f"--user-data-dir={self.folder / 'profile'}"
        window = f"--window-size={self.size[0]},{self.size[1]}"
        options = {"binary": CHROMIUM, "args": [*ARGUMENTS, profile, window]}
        wanted = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options}}}
        self.base += f"/session/{self._call('POST', '/session', wanted)['sessionId']}"
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            self._call("DELETE", "")
        except (requests.RequestException, RuntimeError):
            pass
        finally:
            self.driver.terminate()
            self.driver.wait(20)

    def _ready(self) -> bool:
        try:
            return bool(requests.get(f"{self.base}/status", timeout=5).json()["value"]["ready"])
        except requests.RequestException:
            return False

    def _call(self, method: str, path: str, body: dict | None = None):
        reply = requests.request(method, self.base + path, json=body if method == "POST" else None, timeout=180)
        value = reply.json()["value"]
        if reply.status_code != 200:
            raise RuntimeError(str(value)[:2000])
        return value

    def wait(self, holds, what: str):
        deadline = time.monotonic() + self.timeout_s
        while not (found := holds()):
            assert time.monotonic() < deadline, f"never saw {what}"
            time.sleep(0.3)
        return found

    def open(self, url: str) -> None:
        self._call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments):
        return self._call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def text(self) -> str:
        return self.run("return document.body ? document.body.innerText : ''")

    def wait_for_text(self, *wanted: str) -> str:
        missing = [str(w) for w in wanted]
        self.wait(lambda: all(w in self.text() for w in wanted), f"{missing} in {self.text()[-600:]!r}")
        return self.text()

    def click_text(self, text: str, selector: str = "button, [role=tab], a, span, div") -> None:
        """A real click on the smallest element that shows exactly `text`."""
        script = """
            const found = [...document.querySelectorAll(arguments[0])].filter(
                e => e.innerText && e.innerText.trim() === arguments[1] && e.offsetParent !== null);
            return found.length ? found[found.length - 1] : null;
        """
        element = self.wait(lambda: self.run(script, selector, text), f"{text} to click")
        self._call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def click(self, selector: str) -> None:
        element = self.wait(lambda: self.run("return document.querySelector(arguments[0])", selector), selector)
        self._call("POST", f"/element/{next(iter(element.values()))}/click", {})

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self._call("GET", "/screenshot")))
