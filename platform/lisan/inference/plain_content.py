"""Splits control tokens in the text of chat messages, so that a user cannot end a turn by typing one.

vLLM encodes a rendered chat with every control token active, including those in the users' text. This ASGI middleware inserts an
invisible character (U+2060, see `tokenizer/control_tokens.py`) into them. A training example encodes the same text without that
character, so prompts equal training for every message without a control token. `/v1/completions` stays unchanged: there the
client renders the prompt.
"""

import json
from typing import Any

from lisan.inference.access import AsgiApp, Message, Receive, Scope, Send
from lisan.tokenizer.control_tokens import ControlTokens

PATH = "/v1/chat/completions"


class PlainContent:
    """ASGI middleware that splits control tokens in the messages of chat requests."""

    def __init__(self, app: AsgiApp, controls: ControlTokens) -> None:
        self._app, self._controls = app, controls

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].removeprefix(scope.get("root_path", "")) != PATH:
            await self._app(scope, receive, send)
            return
        first, body = await _read_body(receive)
        changed = split_messages(body, self._controls)
        lengths = [(b"content-length", b"%d" % len(changed))]
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-length"] + lengths
        waiting: list[Message] = [{**first, "body": changed, "more_body": False}]

        async def receive_changed() -> Message:
            return waiting.pop() if waiting else await receive()

        await self._app(scope, receive_changed, send)


async def _read_body(receive: Receive) -> tuple[Message, bytes]:
    """Return the first ASGI message and the joined body, which is partial when the client disconnects."""
    first = message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return first, body


def split_messages(body: bytes, controls: ControlTokens) -> bytes:
    """Split the control tokens of a chat request; returns the same bytes when there are none or it is no chat request."""
    try:
        request = json.loads(body)
        messages = [_split_message(message, controls) for message in request["messages"]]
    except (ValueError, LookupError, TypeError, AttributeError):
        return body  # the engine answers with an error
    if messages == request["messages"]:
        return body
    return json.dumps({**request, "messages": messages}).encode()


def _split_message(message: dict[str, Any], controls: ControlTokens) -> dict[str, Any]:
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": controls.split(content)}
    if isinstance(content, list):
        return {**message, "content": [_split_part(part, controls) for part in content]}
    return message


def _split_part(part: object, controls: ControlTokens) -> object:
    if isinstance(part, dict) and isinstance(part.get("text"), str):
        return {**part, "text": controls.split(part["text"])}
    return part
