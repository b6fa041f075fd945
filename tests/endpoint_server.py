"""A fake OpenAI-compatible endpoint: an HTTP server whose replies a test chooses."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]
"Status, body (anything but bytes is sent as JSON) and headers."


@dataclass
class FakeEndpoint:
    """Records the requests of a fake endpoint and the maximum number of concurrent ones."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    running: int = 0
    max_running: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


def completion(*texts: str, finish: str = "stop") -> Reply:
    choices = [
        {"index": index, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        for index, text in enumerate(texts)
    ]
    return 200, {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": choices}, {}


def failure(status: int, message: str = "no", **headers: str) -> Reply:
    return status, {"error": {"message": message, "type": "t", "code": status, "param": None}}, headers


@contextmanager
def serve(answer: Callable[[dict[str, Any]], Reply], models: Any = ("m",)) -> Iterator[FakeEndpoint]:
    """Serve until the block ends; `answer` gets the body of each chat request."""

    class Responder(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            """Print no line per request."""

        def do_GET(self) -> None:
            listed = [{"id": name, "object": "model", "created": 1, "owned_by": "t"} for name in models]
            self._send(200, {"object": "list", "data": listed}, {})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with served.lock:
                served.requests.append(body)
                served.headers.append({name.lower(): value for name, value in self.headers.items()})
                served.running += 1
                served.max_running = max(served.max_running, served.running)
            reply = answer(body)
            with served.lock:
                served.running -= 1
            self._send(*reply)

        def _send(self, status: int, body: Any, headers: dict[str, str]) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Responder)
    server.daemon_threads = True
    served = FakeEndpoint(f"http://127.0.0.1:{server.server_address[1]}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield served
    server.shutdown()
    server.server_close()
    thread.join()
