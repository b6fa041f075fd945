"""Records to items, results to scores."""

from dataclasses import replace
from typing import Any

import pytest
from tiny import document, preference, question

from lisan.core.errors import ConfigError, DataError
from lisan.evaluate.config import Length, PromptStyle, TaskConfig, TaskKind
from lisan.evaluate.tasks import (
    Item,
    TaskCounts,
    choose_records,
    fit_items,
    keeps,
    make_items,
    preference_text,
    question_text,
)
from lisan.records.records import Question, Turn

CAPITAL = Question("q1", "What is the capital of Morocco?", ("Rabat", "Fes"), 0, "s", "en", meta={"told_in": "ar"})
CHOICE = TaskConfig(kind=TaskKind.multiple_choice, sources=("s",))


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


def test_max_records_keeps_the_smallest_ids_in_any_order(tokenizer: Any) -> None:
    records = [replace(CAPITAL, id=f"{index:03d}") for index in range(50)]
    task = replace(CHOICE, max_records=5)
    for order in (records, records[::-1]):
        assert sorted(item.id for item in make_items(task, order, tokenizer)) == ["000", "001", "002", "003", "004"]


@pytest.mark.parametrize("prompt", PromptStyle)
def test_control_tokens_in_questions_are_plain_text(prompt: PromptStyle, tokenizer: Any) -> None:
    typed = replace(CAPITAL, id="q2", question="a<|im_end|>b", choices=("<|im_end|>", "c"))
    [item] = make_items(replace(CHOICE, prompt=prompt), [typed], tokenizer)
    ends = [
        example.input_ids.tolist().count(tokenizer.convert_tokens_to_ids("<|im_end|>")) for example in item.candidates
    ]
    assert ends == ([0, 0] if prompt is PromptStyle.plain else [1, 1])
    assert tokenizer.decode(item.candidates[0].input_ids).count("<|im_end|>") == ends[0] + 2


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


def test_a_plain_preference_marks_its_speakers() -> None:
    record = replace(preference("en_pairs", 0), prompt=(Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")))
    assert preference_text(record) == "Question: a\nAnswer: b\nQuestion: c\nAnswer:"


def test_a_chat_prompt_equals_the_one_that_serving_renders(tokenizer: Any) -> None:
    from lisan.tokenizer.chat.chat_template import encode_prompt

    [item] = make_items(replace(CHOICE, prompt=PromptStyle.chat), [CAPITAL], tokenizer)
    prompt = encode_prompt(tokenizer, (Turn("user", CAPITAL.question),))
    assert [candidate.input_ids[: len(prompt)].tolist() for candidate in item.candidates] == [prompt, prompt]


def test_a_chat_answer_is_labelled_without_the_mark_that_ends_it(tokenizer: Any) -> None:
    """The end-of-turn token is no part of the answer, nor of its length."""
    [item] = make_items(replace(CHOICE, prompt=PromptStyle.chat), [CAPITAL], tokenizer)
    labelled = [candidate.input_ids[candidate.labels >= 0].tolist() for candidate in item.candidates]
    assert [tokenizer.decode(ids) for ids in labelled] == list(CAPITAL.choices)


def test_items_carry_texts_answers_and_groups(tokenizer: Any) -> None:
    [item] = make_items(CHOICE, [replace(CAPITAL, answer=1)], tokenizer)
    assert (item.texts, item.answer, item.prompt, item.group) == (("Rabat", "Fes"), 1, CAPITAL.question, "s")
    [item] = make_items(CHOICE, [replace(CAPITAL, subject="geography")], tokenizer)
    assert item.group == "geography"
    [pair] = make_items(TaskConfig(kind=TaskKind.preference, sources=("s",)), [preference("en_pairs", 1)], tokenizer)
    assert (pair.answer, pair.texts[0]) == (0, preference("en_pairs", 1).chosen)


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        (replace(CAPITAL, choices=("", "Fes")), "an empty choice"),
        (replace(CAPITAL, choices=("Rabat",)), "fewer than two choices"),
        (replace(CAPITAL, answer=2), "an answer outside the choices"),
        (replace(CAPITAL, answer=-1), "an answer outside the choices"),
        (replace(preference("en_pairs", 1), chosen=" "), "an empty reply"),
        (replace(preference("en_pairs", 1), chosen="a", rejected="a"), "a chosen reply equal to the rejected one"),
        (replace(document("en_text", 1), text=""), "no text"),
    ],
)
def test_a_record_that_cannot_be_scored_is_left_out_and_counted(record: Any, fault: str) -> None:
    counts = TaskCounts()
    whole = [replace(CAPITAL, id=f"{index}") for index in range(3)]
    assert len(choose_records(CHOICE, [*whole, record], counts)) == 3
    assert (counts.matched, dict(counts.left_out)) == (4, {fault: 1})


def test_a_long_prompt_loses_the_same_beginning_for_every_choice(tokenizer: Any) -> None:
    asked = replace(CAPITAL, question="word " * 60 + "last?", choices=("Rabat", "Fes and Meknes"))
    [item] = make_items(CHOICE, [asked], tokenizer)
    longest = max(map(len, item.candidates))
    counts = TaskCounts()
    [short] = fit_items([item], longest - 20, tokenizer.bos_token_id, counts)
    assert (short.is_truncated, counts.truncated) == (True, 1)
    for before, after in zip(item.candidates, short.candidates, strict=True):
        assert len(after) == len(before) - 20 <= longest - 20
        assert after.input_ids[0] == tokenizer.bos_token_id
        assert after.input_ids[1:].tolist() == before.input_ids[21:].tolist()
        assert after.labels[after.labels >= 0].tolist() == before.labels[before.labels >= 0].tolist()


def test_an_answer_that_leaves_no_room_for_its_prompt_is_left_out_and_counted(tokenizer: Any) -> None:
    items = make_items(CHOICE, [CAPITAL, replace(CAPITAL, id="q2", choices=("Rabat", "word " * 60))], tokenizer)
    counts = TaskCounts()
    assert [item.id for item in fit_items(items, 40, tokenizer.bos_token_id, counts)] == ["q1"]
    assert dict(counts.left_out) == {"an answer longer than context_length": 1}


def test_a_document_stays_whole(tokenizer: Any) -> None:
    task = TaskConfig(kind=TaskKind.bits_per_byte, sources=("s",))
    items: list[Item] = make_items(task, [replace(document("en_text", 0), text="word " * 60)], tokenizer)
    assert fit_items(items, 16, tokenizer.bos_token_id, TaskCounts()) == items


def test_a_record_that_the_template_cannot_render_is_named(tokenizer: Any) -> None:
    pair = replace(preference("en_pairs", 1), prompt=(Turn("user", "a"), Turn("user", "b")))
    with pytest.raises(DataError, match="record en_pairs-1 of en_pairs: turn 2: two user turns in a row"):
        make_items(TaskConfig(kind=TaskKind.preference, sources=("s",), prompt=PromptStyle.chat), [pair], tokenizer)


def test_an_object_of_another_type_is_refused(tokenizer: Any) -> None:
    class Stranger:
        id, meta = "s", {}

    with pytest.raises(TypeError, match="Stranger"):
        make_items(CHOICE, [Stranger()], tokenizer)


@pytest.mark.parametrize("values", [{"sources": ()}, {"sources": ("a",), "max_records": 0}])
def test_a_task_without_sources_or_records_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="a task needs sources and max_records >= 1"):
        TaskConfig(kind=TaskKind.preference, **values)


@pytest.mark.parametrize("values", [{"prompt": PromptStyle.chat}, {"length": Length.none}])
def test_fields_without_effect_on_documents_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="prompt and length have no effect on bits_per_byte"):
        TaskConfig(kind=TaskKind.bits_per_byte, sources=("a",), **values)


def test_every_choice_of_a_tiny_question_is_a_candidate(tokenizer: Any) -> None:
    [item] = make_items(CHOICE, [question("ar_questions", 2)], tokenizer)
    assert len(item.candidates) == len(item.texts) == 4
