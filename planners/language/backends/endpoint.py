"""One address of a server that speaks as OpenAI's does: requests, repeated where that helps, and the key."""

from __future__ import annotations

import json
import math
import os
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from threading import Event
from typing import Any, TypeVar
from urllib.parse import urlsplit

from envs.core import InputError
from planners.language.backends.address import is_local, url_fault
from planners.language.base import ModelError

try:
    import httpx2
except ImportError as missing:
    raise InputError(
        "A model behind a server needs the package httpx2, which is not installed: pip install 'concord-rl[planning]'."
    ) from missing

T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
LONGEST_WAIT = 120.0  # seconds between two tries; a server that asks for more ends the run, which can be resumed
LONGEST_CONNECT = 10.0  # seconds
LARGEST_BODY = 16 * 2**20  # bytes of an answer
SECRET = 8  # characters; shorter keys, such as "EMPTY", are placeholders
QUOTED = 300  # characters of a server's words in a message


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


class RefusedError(InputError):
    """The server understands the request and refuses it, as it does with an option that it does not know."""

    def __init__(self, message: str, words: str):
        super().__init__(message)
        self.words = words


class _PassingError(Exception):
    """A failure that may pass. wait: seconds that the server asks for, or None."""

    def __init__(self, reason: str, wait: float | None = None):
        super().__init__(reason)
        self.wait = wait


class Endpoint:
    """POST to `url`/chat/completions.

    The key is read from an environment variable, sent in a header, and cut out of all that the server says; it is kept
    nowhere else. Without `key_variable`, OPENAI_API_KEY is used where it is set, by https or on this machine: over
    plain http it goes elsewhere only if its variable is named. timeout: seconds of one try, as a whole. retries: after
    the first try, at pauses of `pause`, 2·`pause`, 4·`pause`, … seconds or as `Retry-After` says. Redirects are not
    followed, so that no key goes astray.
    """

    def __init__(self, url: str, key_variable: str | None, timeout: float, retries: int, pause: float):
        if fault := url_fault(url):
            raise InputError(f"model.server {fault}.")
        self.url = url.rstrip("/")
        self.variable = key_variable or KEY_VARIABLE
        self._timeout, self._retries, self._pause = timeout, retries, pause
        self._key = _key(self.variable, needed=key_variable is not None)
        local = is_local(self.url)
        if self._key and key_variable is None and not local and urlsplit(self.url).scheme == "http":
            self._key = ""
        self._met = False  # true as soon as the server has said anything
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity", "User-Agent": "concord"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        times = httpx2.Timeout(timeout, connect=min(timeout, LONGEST_CONNECT))
        # A proxy of the environment's is for the world outside.
        self._client = httpx2.Client(headers=headers, limits=limits, timeout=times, trust_env=not local)

    def post(self, body: dict[str, Any], read: Callable[[Any], T], stop: Event) -> T:
        """`read` of the JSON that the server answers; where it raises ValueError, the answer counts as malformed.

        Raises RefusedError or InputError for what no repetition would mend, ModelError when all tries have failed, and
        StoppedError where `stop` is set in between.
        """
        content = json.dumps(body).encode("ascii")
        reason = ""
        for attempt in range(self._retries + 1):
            if stop.is_set():
                raise StoppedError
            try:
                return self._try(content, read)
            except _PassingError as failure:
                reason = str(failure)
                wait = self._pause * 2**attempt if failure.wait is None else failure.wait
                if failure.wait is not None and wait > LONGEST_WAIT:
                    raise ModelError(
                        f"The server {self.url} asks to be left alone for {wait:.0f} seconds ({reason}); the longest "
                        f"wait is {LONGEST_WAIT:.0f}. What was answered is kept: resume the run later."
                    ) from None
            if attempt < self._retries and stop.wait(min(wait, LONGEST_WAIT)):
                raise StoppedError
        raise ModelError(
            f"The server {self.url} gave no answer of use in {self._retries + 1} tries, the last time: {reason}. "
            "Expected an OpenAI-compatible server. What was answered is kept: see to the server and resume the run, or "
            "raise model.timeout or model.retries."
        )

    def scrub(self, text: str) -> str:
        """A text without the key, as it is or as JSON may write it."""
        if len(self._key) < SECRET:
            return text
        return text.replace(self._key, "***").replace(self._key.replace("/", "\\/"), "***")

    def close(self) -> None:
        """Close the connections; a second call does nothing."""
        self._client.close()

    def _try(self, content: bytes, read: Callable[[Any], T]) -> T:
        try:
            status, headers, raw = self._exchange(content)
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout) and not self._met:
                raise self._unreachable("it did not take the connection in time") from None
            raise _PassingError(f"silence for {self._timeout:g} seconds") from None
        except httpx2.HTTPError as error:
            reason = self._quoted(str(error) or type(error).__name__)
            if isinstance(error, httpx2.ConnectError) and not self._met:
                raise self._unreachable(reason) from None
            raise _PassingError(f"a broken connection ({reason})") from None
        text = raw.decode("utf-8", "replace")
        if not 200 <= status < 300:
            raise self._failure(status, text, headers.get("Retry-After"))
        try:
            return read(json.loads(text))
        except (ValueError, RecursionError):
            raise _PassingError(f"no chat completion in JSON but: {self._quoted(text)}") from None

    def _exchange(self, content: bytes) -> tuple[int, Any, bytes]:
        """Status, headers and body of one request, all within the time-out."""
        until = time.monotonic() + self._timeout
        parts, size = [], 0
        with self._client.stream("POST", f"{self.url}/chat/completions", content=content) as response:
            self._met = True
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if size > LARGEST_BODY:
                    raise _PassingError(f"more than {LARGEST_BODY} bytes")
                if time.monotonic() > until:
                    raise _PassingError(f"an answer that was not whole after {self._timeout:g} seconds")
            return response.status_code, response.headers, b"".join(parts)

    def _failure(self, status: int, text: str, retry_after: str | None) -> Exception:
        """The exception for a status that is no success."""
        words = self._quoted(text)
        told = f"status {status}: {words}" if words else f"status {status}"
        if status in (408, 429) or status >= 500:
            return _PassingError(told, seconds_of(retry_after))
        if status in (401, 403):
            return InputError(self._keyless(told))
        if status in (400, 422):
            return RefusedError(
                f"The server {self.url} refuses the query ({told}). Expected one that takes messages, temperature, "
                "seed and max_tokens: mend what it names in the config's section model, where constraint=auto leaves "
                "out constraints that a server does not know.",
                words,
            )
        return InputError(
            f"The server {self.url} is not as expected ({told}). Expected an OpenAI-compatible server that answers "
            f"POST {self.url}/chat/completions: mend model.server, which usually ends in /v1, or the model's name."
        )

    def _keyless(self, told: str) -> str:
        if self._key:
            return (
                f"The server {self.url} does not accept the key of the environment variable {self.variable} ({told}). "
                "Set the variable to a valid key, or name another as model.key_variable."
            )
        if os.environ.get(self.variable):
            return (
                f"The server {self.url} wants a key ({told}), and over plain http none is sent to another machine "
                f"unless its variable is named: set model.key_variable={self.variable}, or use https."
            )
        return (
            f"The server {self.url} wants a key ({told}): set the environment variable {self.variable}, or name the "
            "one that holds it as model.key_variable."
        )

    def _unreachable(self, reason: str) -> ModelError:
        return ModelError(
            f"The server {self.url} cannot be reached: {reason}. Expected an OpenAI-compatible server that answers "
            f"POST {self.url}/chat/completions: start it, or mend model.server."
        )

    def _quoted(self, text: str) -> str:
        """The beginning of what a server said, on one line and without the key."""
        plain = "".join(c if c.isprintable() else " " for c in self.scrub(text))
        line = " ".join(plain[: 10 * QUOTED].split())
        return line if len(line) <= QUOTED else f"{line[:QUOTED]}…"


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where it says nothing to go by."""
    text = (retry_after or "").strip()
    if re.fullmatch(r"\d+(\.\d*)?", text, re.ASCII):
        seconds = float(text)
        return seconds if math.isfinite(seconds) else None
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    if date.tzinfo is None:
        date = date.replace(tzinfo=UTC)
    return max(0.0, (date - datetime.now(UTC)).total_seconds())


def _key(variable: str, needed: bool) -> str:
    """The key, or "" where there is none. Raises InputError for one that is needed or could not be sent."""
    key = os.environ.get(variable, "").strip()
    if needed and not key:
        raise InputError(
            f"model.key_variable names the environment variable {variable}, which is not set. Set it to the server's "
            "key, or leave model.key_variable out where none is needed."
        )
    if not (key.isascii() and key.isprintable()) or " " in key:
        raise InputError(
            f"The environment variable {variable} holds no key: expected printable ASCII characters without spaces."
        )
    return key
