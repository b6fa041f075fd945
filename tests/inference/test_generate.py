"""Requests for answers."""

import asyncio
from typing import Any

import pytest
from endpoint_server import completion, failure, serve

from lisan.core.errors import ConfigError
from lisan.inference.answers import AnsweredPrompt
from lisan.inference.chat_client import ChatClient
from lisan.inference.config import EndpointConfig, SamplingConfig, TrafficConfig
from lisan.inference.generate import generate_answers
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn
from lisan.synth.pairs import make_pair

PROMPT = Prompt("p1", (Turn("user", "شنو سميتك؟"),), "سميتي ليسان.", "chats", "ary")


def sample(url: str, **values: Any) -> AnsweredPrompt:
    async def run() -> AnsweredPrompt:
        client = ChatClient(EndpointConfig(url=url), "m", TrafficConfig(num_retries=0))
        return await generate_answers(client, PROMPT, SamplingConfig(**values), same_language=False)

    return asyncio.run(run())


def test_one_request_asks_for_all_answers() -> None:
    with serve(lambda body: completion(*(f"answer {n}" for n in range(body["n"])))) as served:
        answered = sample(served.url, num_answers=3, temperature=0.7, top_p=0.9, top_k=0, max_tokens=9)
    [body] = served.requests
    assert {key: body[key] for key in ("n", "temperature", "top_p", "top_k", "max_tokens")} == {
        "n": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 9,
    }
    assert [answer.text for answer in answered.answers] == ["answer 0", "answer 1", "answer 2"]


def test_an_endpoint_that_returns_one_answer_gets_further_requests_with_other_seeds() -> None:
    with serve(lambda body: completion(f"seed {body['seed']}")) as served:
        first = sample(served.url, num_answers=3)
        again = sample(served.url, num_answers=3)
        other = sample(served.url, num_answers=3, seed=1)
    assert len({answer.text for answer in first.answers}) == 3
    assert again == first
    assert not {answer.text for answer in other.answers} & {answer.text for answer in first.answers}
    assert "top_k" not in served.requests[0]


def test_a_refused_prompt_keeps_the_reason_and_gives_no_pair() -> None:
    with serve(lambda _: failure(400, "longer than 512 tokens")) as served:
        answered = sample(served.url)
    assert (answered.answers, make_pair(answered, 0.0)) == ((), "refused")
    assert "longer than 512 tokens" in answered.refusal


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_answers": 1}, "sampling.num_answers must be >= 2 .* got 1"),
        ({"temperature": 0.0}, "temperature > 0"),
        ({"top_p": 1.5}, "top_p in"),
        ({"top_k": 1}, "sampling.top_k must be 0 or >= 2"),
    ],
)
def test_sampling_that_gives_no_two_answers_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SamplingConfig(**values)
