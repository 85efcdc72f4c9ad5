"""An OpenAI-compatible server on the loopback, made of Python's own, that answers well or badly as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from planners.language.backends.server import Server
from planners.language.base import Answer, Message, Query, in_order

CHOICES = ("move to pot", "wait")


@dataclass
class Response:
    """One answer. delay, drip: seconds of silence before it and before each byte. hang_up: no answer at all."""

    body: bytes | str | dict[str, Any] | list[Any] = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drip: float = 0.0
    hang_up: bool = False


def completion(*texts: str | None, tokens: tuple[int, int] | None = (7, 3), finish: str = "stop") -> Response:
    """A chat completion as it should be."""
    choices = [
        {"index": i, "message": {"role": "assistant", "content": text}, "finish_reason": finish}
        for i, text in enumerate(texts)
    ]
    usage = {} if tokens is None else {"usage": {"prompt_tokens": tokens[0], "completion_tokens": tokens[1]}}
    return Response({"object": "chat.completion", "choices": choices, **usage})


@dataclass
class FakeServer:
    """What was asked: bodies, headers, and the most requests that were under way at once."""

    url: str
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0

    @property
    def prompts(self) -> list[str]:
        return [body["messages"][-1]["content"] for body in self.bodies]


@contextmanager
def fake_server(respond: Callable[[dict[str, Any], int], Response]) -> Iterator[FakeServer]:
    """`respond(body, number of the request)` answers; the server ends with the context."""
    lock = threading.Lock()
    asleep = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(seen.bodies)
                seen.bodies.append(body)
                seen.headers.append({name.lower(): value for name, value in self.headers.items()})
                seen.paths.append(self.path)
                seen.at_once += 1
                seen.most_at_once = max(seen.most_at_once, seen.at_once)
            response = respond(body, number)
            asleep.wait(response.delay)
            with lock:
                seen.at_once -= 1
            if response.hang_up:
                self.close_connection = True
                return
            raw = response.body if isinstance(response.body, str | bytes) else json.dumps(response.body)
            content = raw.encode() if isinstance(raw, str) else raw
            try:
                self.send_response(response.status)
                for name, value in {"Content-Length": str(len(content)), **response.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for part in [content] if not response.drip else [bytes([byte]) for byte in content]:
                    asleep.wait(response.drip)
                    self.wfile.write(part)
            except OSError:
                self.close_connection = True  # the client has not waited

        def log_message(self, *given: Any) -> None:
            """Silence."""

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *given: Any) -> None:
            """Silence."""

    server = Quiet(("127.0.0.1", 0), Handler)
    seen = FakeServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield seen
    finally:
        asleep.set()
        server.shutdown()
        server.server_close()
        thread.join()


def asking(text: str = "Which?", **options: Any) -> Query:
    return Query((Message("system", "You cook."), Message("user", text)), **options)


def echo(body: dict[str, Any], number: int) -> Response:
    return completion(*[f"{body['messages'][-1]['content']}!"] * body.get("n", 1))


def model_of(server: FakeServer, **options: Any) -> Server:
    return Server(server.url, "m", **{"pause": 0.005, "timeout": 5.0, "retries": 3, **options})


def ask(server: FakeServer, *queries: Query, **options: Any) -> list[Answer]:
    with closing(model_of(server, **options)) as model:
        return in_order(model.complete(queries or [asking()]))
