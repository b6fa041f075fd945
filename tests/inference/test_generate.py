"""Answers: how they are asked for, what is wrong with them, and how they lie on storage."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from endpoint_server import completion, failure, serve

from lisan.core.errors import ConfigError
from lisan.core.storage import Location
from lisan.inference.client import Chat
from lisan.inference.config import EndpointConfig, SamplingConfig, TrafficConfig
from lisan.inference.generate import Answer, Asked, find_faults, give_scores, read_asked, sample_answers, write_asked
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn
from lisan.synth.pairs import make_pair

PROMPT = Prompt("p1", (Turn("user", "شنو سميتك؟"),), "سميتي ليسان.", "chats", "ary")


def sample(url: str, **values: Any) -> Asked:
    async def run() -> Asked:
        chat = Chat(EndpointConfig(url=url), "m", TrafficConfig(num_retries=0))
        return await sample_answers(chat, PROMPT, SamplingConfig(**values), same_language=False)

    return asyncio.run(run())


def test_all_answers_are_asked_for_at_once() -> None:
    with serve(lambda body: completion(*(f"answer {n}" for n in range(body["n"])))) as served:
        asked = sample(served.url, num_answers=3, temperature=0.7, top_p=0.9, top_k=0, max_tokens=9)
    [body] = served.asked
    assert {key: body[key] for key in ("n", "temperature", "top_p", "top_k", "max_tokens")} == {
        "n": 3,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": 0,
        "max_tokens": 9,
    }
    assert [answer.text for answer in asked.answers] == ["answer 0", "answer 1", "answer 2"]


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
        asked = sample(served.url)
    assert (asked.answers, make_pair(asked, 0.0)) == ((), "refused")
    assert "longer than 512 tokens" in asked.refusal


def test_what_is_wrong_with_an_answer_is_named() -> None:
    found = [("سميتي ليسان ", False), ("", False), ("طويل", True), ("سميتي ليسان", False), ("My name is Lisan.", False)]
    faults = ["", "empty", "cut", "repeated", ""]
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=False)] == faults
    faults[-1] = "wrong_language"
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=True)] == faults


def test_the_language_of_the_good_reply_counts_not_that_of_the_prompt() -> None:
    translation = Prompt("p", (Turn("user", "translate: الرباط"),), "Rabat, the capital", "s", "ar")
    [answer] = find_faults([("Rabat it is", False)], translation, same_language=True)
    assert not answer.fault


def test_scores_go_to_the_answers_without_a_fault() -> None:
    asked = Asked(PROMPT, (Answer("a"), Answer("b", "cut"), Answer("c"), Answer("d"), Answer("e"), Answer("f")))
    judged = give_scores(asked, [3.0, None, 1.0, float("nan"), float("inf")])
    assert [(one.score, one.fault) for one in judged.answers] == [
        (3.0, ""),
        (None, "cut"),
        (None, "unjudged"),
        (1.0, ""),
        (None, "unjudged"),
        (None, "unjudged"),
    ]


def test_answers_come_back_from_storage_as_they_went(tmp_path: Path) -> None:
    asked = [
        Asked(PROMPT, (Answer("a", score=0.1 + 0.2), Answer("b", "cut")), ""),
        Asked(PROMPT, (), "too long"),
    ]
    write_asked(Location(str(tmp_path)) / "part", asked)
    assert read_asked(Location(str(tmp_path)) / "part") == asked


def judged(*scores: float | None) -> Asked:
    return Asked(PROMPT, tuple(Answer(f"answer {n}", score=score) for n, score in enumerate(scores)))


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
