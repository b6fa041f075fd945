"""An OpenAI-compatible endpoint, asked many questions at a time.

In: an address and turns. Out: answers. Always: at most `concurrency` requests are under way; what may pass (429, 5xx, a lost
connection, time out) is tried again, waiting longer each time or as long as the endpoint says; what will not is one sentence.
`serve run` gives such an endpoint, and so does any judge service.
"""

import asyncio
import logging
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lisan.core.errors import ConfigError, DataError, ServingError
from lisan.inference.config import EndpointConfig, TrafficConfig
from lisan.records.records import Turn

if TYPE_CHECKING:
    from openai import OpenAIError

NO_KEY = "none"
"Sent where none is asked for, as the client insists on one."


class RefusedError(DataError):
    """A request that the endpoint will never answer, such as a prompt longer than its model reads."""


def read_key(config: EndpointConfig) -> str:
    """Return the key; ConfigError when the variable that should hold it is not set."""
    if config.key is None:
        return NO_KEY
    if not os.environ.get(config.key):
        raise ConfigError(f"the environment variable {config.key} must be set: endpoint.key names it for {config.url}")
    return os.environ[config.key]


def find_model(config: EndpointConfig, traffic: TrafficConfig) -> str:
    """Return the id to ask for, as the endpoint lists it; ServingError when it does not answer or does not serve it."""
    from openai import OpenAI, OpenAIError

    _quiet_client()
    client = OpenAI(base_url=config.url, api_key=read_key(config), max_retries=1, timeout=min(30.0, traffic.timeout_s))
    try:
        served = [model.id for model in client.models.list()]
    except OpenAIError as error:
        raise _sentence(error, config) from error
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
    """Keep the client's line for every request and retry out of job logs; stages say how far they are themselves."""
    for name in ("openai", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.WARNING)


class Chat:
    """One model of an endpoint; belongs to the event loop that it is made in."""

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

    async def ask(self, turns: Sequence[Turn], settings: Mapping[str, Any]) -> list[tuple[str, bool]]:
        """Return the answers, each with whether it was cut at max_tokens.

        Raises RefusedError for a request that is refused for what it says, ServingError for an endpoint that does not work.
        """
        from openai import OpenAIError

        messages: Any = [{"role": turn.role, "content": turn.content} for turn in turns]
        async with self.slots:
            try:
                reply = await self.client.chat.completions.create(model=self.model, messages=messages, **settings)
            except OpenAIError as error:
                said = _sentence(error, self.config)
                self.refusal = str(said) if isinstance(said, RefusedError) else self.refusal
                raise said from error
            except ValueError as error:  # what calls itself JSON and is not
                raise self._malformed(str(error)) from error
        answers = self._read(reply)
        self.has_answered = True
        return answers

    def check_answers(self) -> None:
        """Raise DataError when whatever it was asked so far was refused: then it is not for what one request says."""
        if self.refusal and not self.has_answered:
            raise DataError(
                f"every request was refused; the last time: {self.refusal}; change what it names, here or at the endpoint, and run "
                "again"
            )

    def _read(self, reply: Any) -> list[tuple[str, bool]]:
        try:
            answers = [(choice.message.content or "", choice.finish_reason == "length") for choice in reply.choices]
        except (AttributeError, TypeError) as error:
            raise self._malformed(str(reply)) from error
        if not answers:
            raise self._malformed("no choices")
        return answers

    def _malformed(self, said: str) -> ServingError:
        return ServingError(
            f"{self.config.url} answered with something that is no chat completion ({said[:80]}); "
            "check that it is an OpenAI-compatible endpoint"
        )


def _sentence(error: "OpenAIError", config: EndpointConfig) -> ServingError | RefusedError:
    """Say what an endpoint that does not answer should be asked."""
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
                "command again: what was answered is kept"
            )
    return ServingError(
        f"{config.url} does not answer ({reason}); start it, or wait and lower traffic.concurrency, and run the same command "
        "again: what was answered is kept"
    )
