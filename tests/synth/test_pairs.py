"""Pairs of judged answers."""

import pytest

from lisan.inference.answers import Answer, AnsweredPrompt
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn
from lisan.synth.pairs import make_pair

PROMPT = Prompt("p1", (Turn("user", "شنو سميتك؟"),), "سميتي ليسان.", "chats", "ary")


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
def test_the_reason_for_no_pair_is_named(scores: tuple[float | None, ...], min_gap: float, reason: str) -> None:
    assert make_pair(judged(*scores), min_gap) == reason
