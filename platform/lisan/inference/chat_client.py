"""Asynchronous client of an OpenAI-compatible endpoint.

At most `traffic.concurrency` requests run at a time. 429, 5xx, lost connections and timeouts are retried, after the pause that
the endpoint asks for or one that doubles each time; every other failure is one sentence.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from lisan.core.errors import ConfigError, DataError, ServingError
from lisan.inference.config import EndpointConfig, TrafficConfig
from lisan.records.records import Turn

if TYPE_CHECKING:
    from openai import OpenAIError

NO_KEY = "none"
"Sent to endpoints that need no key: the OpenAI client requires one."


class RefusedError(DataError):
    """A request that the endpoint will never answer, such as a prompt longer than the context length."""


class ChatReply(NamedTuple):
    text: str
    is_cut: bool
    "Whether it ended at max_tokens."


def read_key(config: EndpointConfig) -> str:
    """Return the API key; ConfigError when its environment variable is not set."""
    if config.key is None:
        return NO_KEY
    if not os.environ.get(config.key):
        raise ConfigError(f"the environment variable {config.key} must be set: endpoint.key names it for {config.url}")
    return os.environ[config.key]


def find_model_id(config: EndpointConfig, traffic: TrafficConfig) -> str:
    """Return the model id to send, checked against /v1/models; ServingError when the endpoint fails or lacks the model."""
    from openai import OpenAI, OpenAIError

    _quiet_client()
    client = OpenAI(base_url=config.url, api_key=read_key(config), max_retries=1, timeout=min(30.0, traffic.timeout_s))
    try:
        served = [model.id for model in client.models.list()]
    except OpenAIError as error:
        raise _explain(error, config) from error
    except (ValueError, TypeError, AttributeError) as error:
        raise ServingError(
            f"{config.url}/models did not answer with a list of models; check that endpoint.url ends in /v1"
        ) from error
    if config.model is None and len(served) == 1:
        return served[0]
    if config.model not in served:
        raise ServingError(
            f"endpoint.model={config.model or 'null'} is not served by {config.url}, which serves "
            f"{', '.join(served) or 'nothing'}; name one of them"
        )
    return config.model


def _quiet_client() -> None:
    """Keep the client's line per request out of job logs; stages print their own progress."""
    for name in ("openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class ChatClient:
    """Client of one model of an endpoint; must be created and used in one event loop."""

    def __init__(self, config: EndpointConfig, model: str, traffic: TrafficConfig) -> None:
        from openai import AsyncOpenAI

        _quiet_client()
        self.config, self.model = config, model
        self.has_answered, self.refusal = False, ""
        self.slots = asyncio.Semaphore(traffic.concurrency)
        self.client = AsyncOpenAI(
            base_url=config.url,
            api_key=read_key(config),
            max_retries=traffic.num_retries,
            timeout=traffic.timeout_s,
        )

    async def ask(self, turns: Sequence[Turn], settings: Mapping[str, Any]) -> list[ChatReply]:
        """Send one chat completion request and return its replies.

        Raises RefusedError when the endpoint refuses the request's content, ServingError when the endpoint fails.
        """
        from openai import OpenAIError

        messages: Any = [{"role": turn.role, "content": turn.content} for turn in turns]
        async with self.slots:
            try:
                completion = await self.client.chat.completions.create(model=self.model, messages=messages, **settings)
            except OpenAIError as error:
                explained = _explain(error, self.config)
                self.refusal = str(explained) if isinstance(explained, RefusedError) else self.refusal
                raise explained from error
            except ValueError as error:  # a body that is declared as JSON and is not
                raise self._malformed(str(error)) from error
        replies = self._read(completion)
        self.has_answered = True
        return replies

    def check_answers(self) -> None:
        """Raise DataError when every request so far was refused: then the settings are at fault, not one prompt."""
        if self.refusal and not self.has_answered:
            raise DataError(
                f"every request was refused; the last time: {self.refusal}; change the setting that it names, here or at the "
                "endpoint, and run again"
            )

    def _read(self, completion: Any) -> list[ChatReply]:
        try:
            replies = [
                ChatReply(choice.message.content or "", choice.finish_reason == "length")
                for choice in completion.choices
            ]
        except (AttributeError, TypeError) as error:
            raise self._malformed(str(completion)) from error
        if not replies:
            raise self._malformed("no choices")
        return replies

    def _malformed(self, body: str) -> ServingError:
        return ServingError(
            f"{self.config.url} answered with something that is no chat completion ({body[:80]}); "
            "check that it is an OpenAI-compatible endpoint"
        )


def _explain(error: "OpenAIError", config: EndpointConfig) -> ServingError | RefusedError:
    """Turn an error of the OpenAI client into one sentence with a remedy."""
    import openai

    reason = " ".join(str(error).split())[:300].rstrip(".")
    match error:
        case openai.BadRequestError() | openai.UnprocessableEntityError():
            return RefusedError(f"{config.url} refused a request: {reason}")
        case openai.AuthenticationError() | openai.PermissionDeniedError():
            return ServingError(
                f"{config.url} refused the key ({reason}); set endpoint.key to the name of the environment variable that holds it"
            )
        case openai.NotFoundError():
            return ServingError(
                f"{config.url} has no such address or model ({reason}); check endpoint.url and endpoint.model"
            )
        case openai.APITimeoutError():
            return ServingError(
                f"{config.url} does not answer in time; raise traffic.timeout_s or lower traffic.concurrency, and run the same "
                "command again: finished parts are kept"
            )
    return ServingError(
        f"{config.url} does not answer ({reason}); start it, or wait and lower traffic.concurrency, and run the same command "
        "again: finished parts are kept"
    )
