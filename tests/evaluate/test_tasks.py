"""Records to items, results to scores."""

from dataclasses import replace
from typing import Any

import pytest
from tiny import document, preference, question

from lisan.core.errors import ConfigError
from lisan.corpus.records import Question, Turn
from lisan.evaluate.tasks import (
    Length,
    Prompt,
    Result,
    TaskConfig,
    TaskKind,
    aggregate,
    keeps,
    make_items,
    preference_text,
    question_text,
)

CAPITAL = Question("q1", "What is the capital of Morocco?", ("Rabat", "Fes"), 0, "s", "en", meta={"told_in": "ar"})
CHOICE = TaskConfig(kind=TaskKind.multiple_choice, sources=("s",))


def result(
    *logps: float, num_bytes: tuple[int, ...] | None = None, answer: int = 0, words: int = 1, tokens: int = 1
) -> Result:
    return Result("r", logps, num_bytes or (1,) * len(logps), answer, words, tokens)


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ({}, True),
        ({"told_in": "ar"}, True),
        ({"told_in": "en|ar"}, True),
        ({"told_in": "en"}, False),
        ({"other": "ar"}, False),
    ],
)
def test_records_are_kept_by_their_meta(where: dict[str, str], kept: bool, tokenizer: Any) -> None:
    task = replace(CHOICE, where=where)
    assert keeps(task, CAPITAL.meta) is kept
    assert len(make_items(task, [CAPITAL], tokenizer)) == int(kept)


def test_of_too_many_records_the_smallest_ids_are_taken_whatever_their_order(tokenizer: Any) -> None:
    records = [replace(CAPITAL, id=f"{index:03d}") for index in range(50)]
    task = replace(CHOICE, max_records=5)
    for order in (records, records[::-1]):
        assert sorted(item.id for item in make_items(task, order, tokenizer)) == ["000", "001", "002", "003", "004"]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Question: What?\nAnswer:"),
        ("ar", "سؤال: What?\nجواب:"),
        ("ary", "سؤال: What?\nجواب:"),
        ("fr", "Question: What?\nAnswer:"),
    ],
)
def test_a_plain_prompt_marks_question_and_answer_in_its_language(language: str, text: str) -> None:
    assert question_text(replace(CAPITAL, question="What?", language=language)) == text


def test_a_plain_preference_tells_who_speaks() -> None:
    record = replace(preference("en_pairs", 0), prompt=(Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
    assert preference_text(record) == "Question: a\nAnswer: b\nQuestion: c\nAnswer:"


def test_a_chat_prompt_is_what_serving_renders(tokenizer: Any) -> None:
    from lisan.tokens.chat import encode_prompt

    [item] = make_items(replace(CHOICE, prompt=Prompt.chat), [CAPITAL], tokenizer)
    prompt = encode_prompt(tokenizer, (Turn("user", CAPITAL.question),))
    assert [candidate.input_ids[: len(prompt)].tolist() for candidate in item.candidates] == [prompt, prompt]


def test_items_carry_bytes_answers_and_words(tokenizer: Any) -> None:
    [item] = make_items(CHOICE, [replace(CAPITAL, choices=("الرباط", "Fes"), answer=1)], tokenizer)
    assert (item.num_bytes, item.answer) == ((12, 3), 1)
    [text] = make_items(TaskConfig(kind=TaskKind.bits_per_byte, sources=("s",)), [document("ar_text", 1)], tokenizer)
    assert text.num_words == len(document("ar_text", 1).text.split())
    [pair] = make_items(TaskConfig(kind=TaskKind.preference, sources=("s",)), [preference("en_pairs", 1)], tokenizer)
    assert pair.answer == 0


def test_an_empty_choice_has_a_byte_to_divide_by(tokenizer: Any) -> None:
    [item] = make_items(CHOICE, [replace(CAPITAL, choices=("", "Fes"))], tokenizer)
    assert item.num_bytes == (1, 3)


def test_a_choice_is_made_by_the_byte_or_by_the_whole() -> None:
    long_and_short = result(-6.0, -4.0, num_bytes=(12, 4))
    assert long_and_short.choose(Length.bytes) == 0
    assert long_and_short.choose(Length.none) == 1


def test_accuracy_is_the_share_of_right_choices() -> None:
    results = [result(-1, -2, answer=0), result(-1, -2, answer=1), result(-2, -1, answer=1), result(-3, -1, answer=1)]
    metrics = aggregate(CHOICE, results)
    assert metrics["accuracy"] == 0.75
    assert metrics["accuracy_stderr"] == pytest.approx(0.25)


def test_the_task_says_how_choices_are_compared() -> None:
    results = [result(-6.0, -4.0, num_bytes=(12, 4))]
    assert aggregate(CHOICE, results)["accuracy"] == 1
    assert aggregate(replace(CHOICE, length=Length.none), results)["accuracy"] == 0


def test_bits_per_byte_weigh_every_byte_the_same() -> None:
    import math

    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("s",))
    results = [
        result(-8 * math.log(2), num_bytes=(4,), words=2, tokens=3),
        result(-2 * math.log(2), num_bytes=(16,), words=2, tokens=5),
    ]
    assert aggregate(task, results) == pytest.approx(
        {"bits_per_byte": 0.5, "tokens_per_word": 2.0, "bytes_per_token": 2.5}
    )


def test_what_is_no_record_is_refused(tokenizer: Any) -> None:
    class Stranger:
        id, meta = "s", {}

    with pytest.raises(TypeError, match="Stranger"):
        make_items(CHOICE, [Stranger()], tokenizer)


@pytest.mark.parametrize("values", [{"sources": ()}, {"sources": ("a",), "max_records": 0}])
def test_a_task_without_sources_or_records_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a task needs sources and max_records >= 1"):
        TaskConfig(kind=TaskKind.preference, **values)


def test_every_choice_of_a_tiny_question_is_a_candidate(tokenizer: Any) -> None:
    [item] = make_items(CHOICE, [question("ar_questions", 2)], tokenizer)
    assert len(item.candidates) == len(item.num_bytes) == 4
