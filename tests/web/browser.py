"""A headless Chromium by the WebDriver protocol (W3C), with nothing but the standard library."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key under which the protocol hands elements over
ENTER = "\ue007"
OPTIONS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--window-size=1200,900",
]


class Browser:
    """One session of a driver that listens at `address`."""

    def __init__(self, address: str) -> None:
        self.address = address
        capabilities = {"alwaysMatch": {"goog:chromeOptions": {"args": OPTIONS}}}
        answer = self.ask("POST", "/session", {"capabilities": capabilities})
        self.session = f"/session/{answer['sessionId']}"

    def ask(self, method: str, path: str, content: Any = None) -> Any:
        """What the driver answers; its errors are raised with what it says."""
        body = None if content is None else json.dumps(content).encode()
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(f"{method} {path}: {json.load(error)['value']['message']}") from error

    def open(self, url: str) -> None:
        self.ask("POST", f"{self.session}/url", {"url": url})

    def run(self, script: str) -> Any:
        """The value that `script`, a function's body, returns in the page."""
        return self.ask("POST", f"{self.session}/execute/sync", {"script": script, "args": []})

    def _element(self, selector: str) -> str:
        found = self.ask("POST", f"{self.session}/element", {"using": "css selector", "value": selector})
        return f"{self.session}/element/{found[ELEMENT]}"

    def type(self, selector: str, text: str) -> None:
        """Type into an element, key by key."""
        self.ask("POST", f"{self._element(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self.ask("POST", f"{self._element(selector)}/click", {})

    def close(self) -> None:
        self.ask("DELETE", self.session)


def wait_for(what: str, seen: Callable[[], Any], seconds: float = 30) -> Any:
    """What `seen` returns as soon as it is true."""
    end = time.monotonic() + seconds
    while not (value := seen()):
        assert time.monotonic() < end, f"{what}: not within {seconds:g} s"
        time.sleep(0.1)
    return value


@contextmanager
def browser(port: int) -> Iterator[Browser]:
    """A browser of its own, ended afterwards. Raises FileNotFoundError where there is no chromedriver."""
    address = f"http://127.0.0.1:{port}"
    driver = subprocess.Popen(["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL)
    try:

        def ready() -> bool:
            try:
                with urllib.request.urlopen(f"{address}/status", timeout=5) as response:
                    return bool(json.load(response)["value"]["ready"])
            except OSError:
                return False

        wait_for("chromedriver", ready)
        opened = Browser(address)
        try:
            yield opened
        finally:
            opened.close()
    finally:
        driver.terminate()
        driver.wait(10)
