"""The access list of an endpoint, as ASGI."""

import asyncio
import json
from typing import Any

import pytest

from lisan.inference.access import AllowedRoutes


async def engine(scope: Any, receive: Any, send: Any) -> None:
    """Answer every request with 200."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"engine"})


def ask(method: str, path: str, root: str = "", kind: str = "http") -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    scope = {"type": kind, "method": method, "path": root + path, "root_path": root, "headers": []}
    asyncio.run(AllowedRoutes(engine)(scope, receive, send))
    return sent


@pytest.mark.parametrize("root", ["", "/chat"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/health"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/lisan"),
        ("GET", "/v1/models/org/lisan"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
    ],
)
def test_the_api_reaches_the_engine(method: str, path: str, root: str) -> None:
    assert [message.get("body", message.get("status")) for message in ask(method, path, root)] == [200, b"engine"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/scale_elastic_ep"),
        ("POST", "/invocations"),
        ("POST", "/tokenize"),
        ("POST", "/v1/chat/completions/render"),
        ("POST", "/v1/chat/completions/"),
        ("POST", "/v1/embeddings"),
        ("POST", "//v1/completions"),
        ("GET", "/docs"),
        ("GET", "/openapi.json"),
        ("GET", "/metrics"),
        ("GET", "/v1/models/"),
        ("GET", "/health\n"),
        ("GET", "/v1/../docs"),
        ("OPTIONS", "/docs"),
        ("GET", "/"),
        ("GET", ""),
    ],
)
def test_other_routes_are_a_404_in_the_shape_of_openai_errors(method: str, path: str) -> None:
    start, body = ask(method, path)
    assert start["status"] == 404
    error = json.loads(body["body"])["error"]
    assert error["message"].startswith(f"Invalid URL ({method} {path})")
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "unknown_url")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/v1/chat/completions", b"POST"),
        ("DELETE", "/v1/models/lisan", b"GET"),
        ("OPTIONS", "/v1/chat/completions", b"POST"),
        ("HEAD", "/health", b"GET"),
    ],
)
def test_another_method_is_a_405_that_names_the_right_one(method: str, path: str, allowed: bytes) -> None:
    start, body = ask(method, path)
    assert start["status"] == 405
    assert dict(start["headers"])[b"allow"] == allowed
    assert json.loads(body["body"])["error"]["code"] == "method_not_supported"


def test_a_websocket_is_refused() -> None:
    assert ask("GET", "/v1/realtime", kind="websocket") == [{"type": "websocket.close", "code": 1008}]
