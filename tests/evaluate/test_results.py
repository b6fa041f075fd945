"""Log-probabilities to choices, choices to metrics."""

import math
from dataclasses import replace
from typing import Any

import pytest
from tiny import document

from lisan.core.errors import DataError
from lisan.evaluate.config import Length, TaskConfig, TaskKind
from lisan.evaluate.results import ItemResult, aggregate, check_finite, describe, make_result
from lisan.evaluate.tasks import make_items

CHOICE = TaskConfig(kind=TaskKind.multiple_choice, sources=("s",))


def result(*logps: float, answer: int = 0, **sizes: Any) -> ItemResult:
    ones = (1,) * len(logps)
    return ItemResult(
        "r", logps, **{"num_bytes": ones, "num_characters": ones, "num_tokens": ones, **sizes}, answer=answer
    )


def test_sizes_are_those_of_the_answers(tokenizer: Any) -> None:
    from lisan.records.records import Question

    [item] = make_items(CHOICE, [Question("q", "Capital?", ("الرباط", "Fes"), 1, "s", "en")], tokenizer)
    found = make_result(item, (-1.0, -2.0))
    assert (found.num_bytes, found.num_characters, found.answer) == ((12, 3), (6, 3), 1)
    assert found.num_tokens == tuple(int((example.labels >= 0).sum()) for example in item.candidates)
    [text] = make_items(TaskConfig(kind=TaskKind.bits_per_byte, sources=("s",)), [document("ar_text", 1)], tokenizer)
    assert make_result(text, (-1.0,)).num_words == len(document("ar_text", 1).text.split())


@pytest.mark.parametrize(
    ("length", "chosen"), [(Length.none, 1), (Length.bytes, 0), (Length.characters, 1), (Length.tokens, 0)]
)
def test_choices_are_compared_by_the_length_of_the_task(length: Length, chosen: int) -> None:
    """Scores are -6 and -4 in all, -0.5 and -1 a byte, -1 and -0.8 a character, -1.5 and -4 a token."""
    found = result(-6.0, -4.0, num_bytes=(12, 4), num_characters=(6, 5), num_tokens=(4, 1))
    assert found.choose(length) == (chosen,)
    assert aggregate(replace(CHOICE, length=length), [found])["accuracy"] == (chosen == 0)


def test_accuracy_is_the_share_of_right_choices() -> None:
    results = [result(-1, -2, answer=0), result(-1, -2, answer=1), result(-2, -1, answer=1), result(-3, -1, answer=1)]
    metrics = aggregate(CHOICE, results)
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_stderr"] == pytest.approx(0.25)


@pytest.mark.parametrize("answer", range(4))
def test_choices_that_tie_share_the_credit_wherever_the_answer_stands(answer: int) -> None:
    found = result(-2.0, -2.0, -2.0, -2.0, answer=answer)
    assert found.choose(Length.bytes) == (0, 1, 2, 3)
    assert aggregate(CHOICE, [found])["accuracy"] == 0.25
    two = result(-2.0, -3.0, -2.0 * (1 + 1e-8), -5.0, answer=answer)
    assert two.credit(Length.none) == (0.5 if answer in (0, 2) else 0.0)


@pytest.mark.parametrize("broken", [math.nan, -math.inf])
def test_a_log_probability_that_is_not_finite_is_an_error_that_names_task_and_item(broken: float) -> None:
    """With nan every comparison is false, and the first choice would be right."""
    with pytest.raises(
        DataError, match=rf"tasks\.exam: model/x@v1 gives item r the log-probability {broken} \(1 of 2 items"
    ):
        check_finite("exam", [result(-1.0, -2.0), result(broken, broken)], "model/x@v1")
    check_finite("exam", [result(-1.0, -2.0)], "model/x@v1")


def test_bits_per_byte_weigh_every_byte_the_same() -> None:
    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("s",))
    results = [
        replace(result(-8 * math.log(2), num_bytes=(4,), num_tokens=(3,)), num_words=2),
        replace(result(-2 * math.log(2), num_bytes=(16,), num_tokens=(5,)), num_words=2),
    ]
    assert aggregate(task, results) == pytest.approx(
        {"bits_per_byte": 0.5, "tokens_per_word": 2.0, "bytes_per_token": 2.5}
    )


def test_reasons_are_described_in_order_of_frequency() -> None:
    assert describe({"no text": 2, "an empty choice": 1_000}) == "1,000 with an empty choice, 2 with no text"
