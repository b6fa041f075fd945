"""Answers: how they are answered for, what is wrong with them, and how they lie on storage."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import completion, failure, serve

from lisan.core.errors import ConfigError
from lisan.core.storage import Location
from lisan.inference.answers import Answer, AnsweredPrompt, add_scores, find_faults, read_answers, write_answers
from lisan.inference.chat_client import ChatClient, ChatReply
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


def test_all_answers_are_asked_for_at_once() -> None:
    with serve(lambda body: completion(*(f"answer {n}" for n in range(body["n"])))) as served:
        answered = sample(served.url, num_answers=3, temperature=0.7, top_p=0.9, top_k=0, max_tokens=9)
    [body] = served.asked
    assert {key: body[key] for key in ("n", "temperature", "top_p", "top_k", "max_tokens")} == {
        "n": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 9,
    }
    assert [answer.text for answer in answered.answers] == ["answer 0", "answer 1", "answer 2"]


def test_an_endpoint_that_gives_one_at_a_time_is_asked_again_with_other_seeds() -> None:
    with serve(lambda body: completion(f"seed {body['seed']}")) as served:
        first = sample(served.url, num_answers=3)
        again = sample(served.url, num_answers=3)
        other = sample(served.url, num_answers=3, seed=1)
    assert len({answer.text for answer in first.answers}) == 3
    assert again == first
    assert not {answer.text for answer in other.answers} & {answer.text for answer in first.answers}
    assert "top_k" not in served.asked[0]


def test_a_refused_prompt_says_why_and_gives_no_pair() -> None:
    with serve(lambda _: failure(400, "longer than 512 tokens")) as served:
        answered = sample(served.url)
    assert (answered.answers, make_pair(answered, 0.0)) == ((), "refused")
    assert "longer than 512 tokens" in answered.refusal


def test_what_is_wrong_with_an_answer_is_named() -> None:
    texts = ("سميتي ليسان ", "", "طويل", "سميتي ليسان", "My name is Lisan.")
    found = [ChatReply(text, is_cut=text == "طويل") for text in texts]
    faults = ["", "empty", "cut", "repeated", ""]
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=False)] == faults
    faults[-1] = "wrong_language"
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=True)] == faults


def test_the_language_of_the_good_reply_counts_not_that_of_the_prompt() -> None:
    translation = Prompt("p", (Turn("user", "translate: الرباط"),), "Rabat, the capital", "s", "ar")
    [answer] = find_faults([ChatReply("Rabat it is", is_cut=False)], translation, same_language=True)
    assert not answer.fault


def test_scores_go_to_the_answers_without_a_fault() -> None:
    answered = AnsweredPrompt(
        PROMPT, (Answer("a"), Answer("b", "cut"), Answer("c"), Answer("d"), Answer("e"), Answer("f"))
    )
    judged = add_scores(answered, [3.0, None, 1.0, float("nan"), float("inf")])
    assert [(one.score, one.fault) for one in judged.answers] == [
        (3.0, ""),
        (None, "cut"),
        (None, "unjudged"),
        (1.0, ""),
        (None, "unjudged"),
        (None, "unjudged"),
    ]


def test_answers_come_back_from_storage_as_they_went(tmp_path: Path) -> None:
    answered = [
        AnsweredPrompt(PROMPT, (Answer("a", score=0.1 + 0.2), Answer("b", "cut")), ""),
        AnsweredPrompt(PROMPT, (), "too long"),
    ]
    write_answers(Location(str(tmp_path)) / "part", answered)
    assert read_answers(Location(str(tmp_path)) / "part") == answered


def judged(*scores: float | None) -> AnsweredPrompt:
    return AnsweredPrompt(PROMPT, tuple(Answer(f"answer {n}", score=score) for n, score in enumerate(scores)))


def test_the_best_is_chosen_and_the_worst_rejected() -> None:
    pair = make_pair(judged(3, None, 7, 7, 1, 1), min_gap=6)
    assert not isinstance(pair, str)
    assert (pair.chosen, pair.rejected, pair.language, pair.prompt) == ("answer 2", "answer 4", "ary", PROMPT.turns)
    assert pair.meta == {"prompt": "p1", "chosen_score": "7", "rejected_score": "1"}


@pytest.mark.parametrize(
    ("scores", "min_gap", "reason"),
    [((), 0, "too_few"), ((3, None), 0, "too_few"), ((2, 2, 2), 0, "tie"), ((1, 2), 1.5, "small_gap")],
)
def test_what_gives_no_pair_says_why(scores: tuple[float | None, ...], min_gap: float, reason: str) -> None:
    assert make_pair(judged(*scores), min_gap) == reason


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
