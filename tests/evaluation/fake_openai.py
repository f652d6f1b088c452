"""A fake OpenAI-compatible endpoint: a real HTTP server on 127.0.0.1 with answers programmed by the test."""

from __future__ import annotations

import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from harness.evaluation.base import JudgeContext
from harness.evaluation.judges.openai import OpenAIJudge, OpenAIOptions, make


@dataclass
class Reply:
    """One answer. `body` replaces the chat completion that the other fields would make.

    `tokens` are the log-probs: (token, {alternative: log-prob}) for each token. `keep` is the number of bytes of the
    body that are sent before the connection is closed; `reset` resets the connection before any byte.
    """

    text: str | None = None
    finish_reason: str = "stop"
    refusal: str | None = None
    status: int = 200
    body: object = None
    content_type: str = "application/json"
    delay: float = 0.0
    usage: tuple[int, int] | None = (100, 10)
    tokens: list[tuple[str, dict[str, float]]] | None = None
    keep: int | None = None
    reset: bool = False
    headers: dict = field(default_factory=lambda: {"retry-after-ms": "1"})  # the client retries immediately


@dataclass
class Request:
    """A request to the server: the JSON body, and the texts to compare, extracted from their fences."""

    body: dict
    headers: Message  # header names in any case

    @property
    def content(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def mark(self) -> str:
        return re.search(r"mark (\w+)\.", self.content).group(1)

    @property
    def prompt(self) -> str:
        return self.fenced("prompt")

    @property
    def responses(self) -> tuple[str, str]:
        return self.fenced("response-1"), self.fenced("response-2")

    def fenced(self, name: str) -> str:
        opening, closing = f"<{name}-{self.mark}>\n", f"\n</{name}-{self.mark}>"
        return self.content.split(opening)[1].split(closing)[0]


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # simultaneous connections; a refused one would be retried a second later


class FakeOpenAI:
    """The server. `respond(request) -> Reply` decides the answer; `requests` has all requests, `busiest` the maximum
    number of concurrent ones."""

    def __init__(self, respond: Callable[[Request], Reply]):
        self.respond = respond
        self.requests: list[Request] = []
        self.under_way = 0
        self.busiest = 0
        lock = threading.Lock()
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                request = Request(body, self.headers)
                with lock:
                    fake.requests.append(request)
                    fake.under_way += 1
                    fake.busiest = max(fake.busiest, fake.under_way)
                reply = fake.respond(request)
                time.sleep(reply.delay)
                with lock:
                    fake.under_way -= 1
                payload = completion(reply, body["model"]) if reply.body is None else reply.body
                data = payload.encode() if isinstance(payload, str) else json.dumps(payload).encode()
                if reply.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                try:
                    self.send_response(reply.status)
                    for name, value in {**reply.headers, "Content-Type": reply.content_type}.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data[: reply.keep])
                    self.close_connection = self.close_connection or reply.keep is not None
                except ConnectionError:  # the client did not wait
                    self.close_connection = True

            def log_message(self, *arguments):
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def __enter__(self) -> FakeOpenAI:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def completion(reply: Reply, model: str) -> dict:
    message = {"role": "assistant", "content": reply.text, "refusal": reply.refusal}
    choice = {"index": 0, "message": message, "finish_reason": reply.finish_reason}
    if reply.tokens is not None:
        choice["logprobs"] = {"content": [_token(*token) for token in reply.tokens]}
    body = {"id": "chat-1", "object": "chat.completion", "created": 0, "model": f"{model}-2026", "choices": [choice]}
    if reply.usage:
        counts = (*reply.usage, sum(reply.usage))
        body["usage"] = dict(zip(("prompt_tokens", "completion_tokens", "total_tokens"), counts, strict=True))
    return body


def _token(token: str, alternatives: dict[str, float]) -> dict:
    top = [{"token": name, "logprob": logp, "bytes": None} for name, logp in alternatives.items()]
    return {"token": token, "logprob": alternatives.get(token, -1.0), "bytes": None, "top_logprobs": top}


def prefers(word: str) -> Callable[[Request], Reply]:
    """Return a `respond` that prefers the response with this word, in either position."""
    return lambda request: Reply(f"One says {word}.\nPreferred: {1 if word in request.responses[0] else 2}")


def judge_of(server: FakeOpenAI, context: JudgeContext, **options) -> OpenAIJudge:
    """Return a judge that asks the server, without retries unless the options say so."""
    return make(OpenAIOptions(**{"model": "judge", "base_url": server.url, "max_retries": 0, **options}), context)
