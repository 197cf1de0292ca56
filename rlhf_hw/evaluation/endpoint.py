"""A chat model behind an OpenAI-compatible endpoint, asked over HTTP by the standard library alone.

The key comes from the environment, goes into one header and nowhere else; redirects are refused, because it would go
along. What fails in passing (429, 5xx, time-outs, broken answers) is tried again, later each time.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from rlhf_hw.errors import UserError
from rlhf_hw.secrets import redact_text

DEFAULT_URL = "https://api.openai.com/v1"
#: Seconds: before the first repetition, and at most between two.
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
#: Of what an endpoint says when it refuses, so much is shown.
SHOWN = 200

Message = dict[str, str]


class PassingFailure(Exception):
    """A request failed in a way that may be gone the next time. `wait`: seconds that the endpoint asked for."""

    def __init__(self, message: str, wait: float | None = None) -> None:
        super().__init__(message)
        self.wait = wait


class Stopped(Exception):
    """Not asked any more: another request has failed for good, or the user has interrupted."""


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


@dataclass
class Endpoint:
    """One model at one endpoint. May be asked by several threads; `stop` ends the asking and waiting of them all."""

    url: str
    model: str
    key: str | None = field(default=None, repr=False)
    timeout: float = 60.0
    retries: int = 6
    first_wait: float = FIRST_WAIT
    stop: threading.Event = field(default_factory=threading.Event)
    temperature: float | None = 0.0  #: None once the endpoint has said that its model takes none

    @classmethod
    def from_environment(cls, url: str | None, model: str, key_variable: str, **options: Any) -> Endpoint:
        """The endpoint that a flag, or OPENAI_BASE_URL, names, with the key from the variable.

        Raises:
            UserError: the URL is none or holds credentials, the key fits into no header, or OpenAI's own endpoint is asked
                without a key.
        """
        found = (url or os.environ.get("OPENAI_BASE_URL") or DEFAULT_URL).rstrip("/")
        if not _is_url(found):
            raise UserError(
                f"--judge_url: {redact_text(found, ())} is no http(s) URL; give one such as {DEFAULT_URL}"
            )
        if "@" in urlsplit(found).netloc:  # http.client takes a user's name for a part of the host's
            raise UserError(
                f"--judge_url: {redact_text(found, ())} holds credentials, which are not sent; leave them out, and set the "
                f"variable {key_variable}"
            )
        key = os.environ.get(key_variable, "").strip() or None  # a file's line end often comes along
        if key is not None and not (key.isascii() and key.isprintable()):
            raise UserError(
                f"--api_key_variable: what {key_variable} holds has characters that no key has; set it again"
            )
        if key is None and found == DEFAULT_URL:
            raise UserError(
                f"--judge_model: {DEFAULT_URL} wants a key in the variable {key_variable}, which is not set; set it, or "
                "name another endpoint with --judge_url, or judge with --reward_model"
            )
        return cls(found, model, key, **options)

    @property
    def shown_url(self) -> str:
        """The URL without credentials."""
        return redact_text(self.url, [self.key] if self.key else [])

    def complete(self, messages: Sequence[Message]) -> str:
        """What the model says to the messages.

        Raises:
            UserError: the endpoint refuses the request, or fails at every try. Nothing is asked any more then.
            Stopped: `stop` is set.
        """
        wait, last = self.first_wait, ""
        for attempt in range(self.retries + 1):
            if self.stop.is_set():
                raise Stopped
            try:
                return self._ask(messages)
            except UserError:
                self.stop.set()
                raise
            except PassingFailure as failure:
                last = str(failure)
                if attempt < self.retries:
                    # with some chance in it, or all threads would come back at once
                    pause = failure.wait if failure.wait is not None else wait * random.uniform(0.75, 1.25)
                    self.stop.wait(min(pause, LONGEST_WAIT))
                    wait = min(2 * wait, LONGEST_WAIT)
        self.stop.set()
        raise UserError(
            f"--judge_url: {self.shown_url} did not answer in {self.retries + 1} tries; the last: {last}"
        )

    def _ask(self, messages: Sequence[Message]) -> str:
        body: dict[str, Any] = {"model": self.model, "messages": list(messages)}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        headers = {"Content-Type": "application/json"}
        if self.key is not None:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), headers, method="POST"
        )
        opener = urllib.request.build_opener(_NoRedirects)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            return self._refused(error, messages)
        except (urllib.error.URLError, TimeoutError, OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", None) or error
            raise PassingFailure(self._clean(f"{type(error).__name__}: {reason}")) from error
        return self._said(content)

    def _refused(self, error: urllib.error.HTTPError, messages: Sequence[Message]) -> str:
        """What to do about a status that is no success: another try, another request, or the end."""
        try:
            text = error.read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException):
            text = ""
        said = self._clean(f"HTTP {error.code} {text}")
        if error.code in (408, 409, 425, 429) or error.code >= 500:
            raise PassingFailure(said, _seconds(error.headers.get("Retry-After"))) from error
        if error.code == 400 and self.temperature is not None and "temperature" in text:
            self.temperature = None  # some models take their own alone
            return self._ask(messages)
        hints = {
            401: "check the key in the environment",
            403: "check the key in the environment",
            404: f"check the URL, and --judge_model {self.model}",
        }
        hint = hints.get(error.code, "check --judge_url and --judge_model")
        raise UserError(f"--judge_url: {self.shown_url} refuses: {said}; {hint}") from error

    def _said(self, content: bytes) -> str:
        try:
            text = json.loads(content)["choices"][0]["message"]["content"]
        except (ValueError, KeyError, IndexError, TypeError) as error:
            shown = self._clean(content.decode("utf-8", "replace"))
            raise PassingFailure(f"no chat completion came back: {shown}") from error
        if not isinstance(text, str):
            raise PassingFailure("the answer holds no text")
        return text

    def _clean(self, text: str) -> str:
        """One short line without the key, which some endpoints repeat when they refuse it."""
        return redact_text(" ".join(text.split()), [self.key] if self.key else [])[:SHOWN]


def _is_url(text: str) -> bool:
    """Whether a request can be sent there."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False
    sendable = text.isascii() and text.isprintable() and " " not in text and port != 0
    return sendable and parts.scheme in ("http", "https") and bool(parts.hostname)


def _seconds(header: str | None) -> float | None:
    """The seconds of a Retry-After header; None where it is missing or a date."""
    try:
        return max(0.0, float(header)) if header is not None else None
    except ValueError:
        return None
