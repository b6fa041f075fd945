"""Access list of an endpoint: ASGI middleware that lets only the routes of `ROUTES` reach the engine's app.

vLLM's app mounts some thirty routes; `/scale_elastic_ep`, `/invocations` and `/tokenize` among them need no key. Other requests are
answered with an error in OpenAI's shape.
"""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]

ROUTES = (
    ("GET", re.compile(r"/health")),
    ("GET", re.compile(r"/v1/models(/.+)?")),
    ("POST", re.compile(r"/v1/chat/completions")),
    ("POST", re.compile(r"/v1/completions")),
)
"Method and path, below the route prefix of the application."
REFUSED_WEBSOCKET = {"type": "websocket.close", "code": 1008}  # policy violation, RFC 6455 section 7.4.1


class AllowedRoutes:
    """Passes the requests of `ROUTES` on; answers others with 404, or 405 for a wrong method."""

    def __init__(self, app: AsgiApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send(REFUSED_WEBSOCKET)
            return
        refusal = find_refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
            return
        status, error, headers = refusal
        body = json.dumps({"error": error}).encode()
        headers = [*headers, (b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def find_refusal(scope: Scope) -> tuple[int, dict[str, Any], list[tuple[bytes, bytes]]] | None:
    """Return the status, error and headers of the refusal of an HTTP request; None when it is allowed."""
    method, path = scope["method"], scope["path"].removeprefix(scope.get("root_path", ""))
    allowed = [known for known, route in ROUTES if route.fullmatch(path)]
    if method in allowed:
        return None
    error = {"type": "invalid_request_error", "param": None}
    if not allowed:
        message = (
            f"Invalid URL ({method} {path}); this endpoint serves /v1/models, /v1/chat/completions and /v1/completions"
        )
        return 404, {"message": message, "code": "unknown_url", **error}, []
    message = f"Not allowed to {method} on {path}; use {allowed[0]}"
    return 405, {"message": message, "code": "method_not_supported", **error}, [(b"allow", allowed[0].encode())]
