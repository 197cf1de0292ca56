"""A small OpenAI-compatible endpoint on this machine, which fails as real ones do."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

#: What a request may come to, in place of an answer: status, headers, body; or seconds to hang.
FAULTS: dict[str, Any] = {
    "500": (500, {}, b"it hurts"),
    "429": (429, {"Retry-After": "0"}, b'{"error": "slow down"}'),
    "not json": (200, {}, b"<html>"),
    "no choices": (200, {}, b'{"choices": []}'),
    "no text": (200, {}, b'{"choices": [{"message": {"content": null}}]}'),
    "hangs": 1.0,
    "cut off": (200, {"Content-Length": "999"}, b'{"choices": ['),
    "401": (401, {}, b'{"error": "Incorrect API key provided: sk-secret-of-the-test"}'),
    "404": (404, {}, b'{"error": "no such model"}'),
    "redirect": (307, {"Location": "http://127.0.0.1:9/stolen"}, b""),
    "no temperature": (400, {}, b'{"error": "temperature is not supported with this model"}'),
}


@dataclass
class Log:
    """What was asked."""

    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def longer_wins(first: str, second: str) -> str:
    """A judge without bias by position."""
    if len(first) == len(second):
        return "TIE"
    return "FIRST" if len(first) > len(second) else "SECOND"


@contextmanager
def judge_server(
    verdict: Callable[[str, str], str] = longer_wins, faults: tuple[str, ...] = (), always: str | None = None
) -> Iterator[tuple[str, Log]]:
    """(base URL, log) of a server that judges by `verdict` once the `faults` have had their turn."""
    log, waiting, lock = Log(), list(faults), threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                log.requests.append(body)
                log.keys.append(self.headers.get("Authorization"))
                fault = always or (waiting.pop(0) if waiting else None)
            if fault == "no temperature" and "temperature" not in body:
                fault = None
            if fault is None:
                said = re.search(
                    r"# First answer\n\n(.*?)\n\n# Second answer\n\n(.*?)\n\n# Which",
                    body["messages"][-1]["content"],
                    re.DOTALL,
                )
                assert said
                content = {
                    "choices": [{"message": {"role": "assistant", "content": verdict(said[1], said[2])}}]
                }
                self._reply(200, {}, json.dumps(content).encode())
            elif isinstance(FAULTS[fault], float):
                time.sleep(FAULTS[fault])
            else:
                self._reply(*FAULTS[fault])

        def _reply(self, status: int, headers: dict[str, str], content: bytes) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", log
    finally:
        server.shutdown()
        server.server_close()
