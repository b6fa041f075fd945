from collections import Counter
from typing import Any

import pytest

from lisan.corpus.config import RowLayout, SourceConfig
from lisan.corpus.layouts.layouts import LAYOUTS, make_records
from lisan.corpus.layouts.messages import unused_fields
from lisan.corpus.sources.lines import BadRowError, DroppedRowError, Row
from lisan.records.records import Turn

TEMPLATE = "Below is an instruction that describes a task. Write a response.\n\n"

BELEBELE = {"flores_passage": "نص ", "question": "لماذا؟", **{f"mc_answer{n}": f"جواب {n}" for n in range(1, 5)}}


def lay(layout: RowLayout, row: Any, **options: Any) -> dict[str, Any]:
    (fields,) = LAYOUTS[layout][1](row, SourceConfig(layout=layout, language="en", **options))
    return {name: value for name, value in fields.items() if name != "notes"}


def notes_of(layout: RowLayout, row: Any) -> Counter[str]:
    source, notes = SourceConfig(layout=layout, language="en"), Counter[str]()
    list(make_records(Row("f:0", 1, row), "s", source, notes))
    return notes


def turns(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if index % 2 else "user", content) for index, content in enumerate(contents))


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        (RowLayout.alpaca, {"instruction": "Sum", "input": "1 2", "output": "3"}, turns("Sum\n\n1 2", "3")),
        (RowLayout.alpaca, {"instruction": "Hi", "input": "", "output": "Yo"}, turns("Hi", "Yo")),
        (RowLayout.prompt, {"prompt": "Hi ", "response": " Yo"}, turns("Hi", "Yo")),
        (
            RowLayout.prompt,
            {
                "prompt": f"{TEMPLATE}### Instruction:\nDo\nit\n\n### Input:\nx\n\n### Response:\n",
                "response": "Done",
            },
            turns("Do\nit\n\nx", "Done"),
        ),
        (
            RowLayout.seed_task,
            {"instruction": "A", "instances": [{"input": "b", "output": "c"}, {}]},
            turns("A\n\nb", "c"),
        ),
        (
            RowLayout.messages,
            {
                "messages": [
                    {"role": "user", "content": "1"},
                    {"role": "assistant", "content": "2"},
                    {"role": "user", "content": "3"},
                ]
            },
            turns("1", "2"),
        ),
        (
            RowLayout.messages,
            {"messages": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]},
            turns("1", "2"),
        ),
    ],
)
def test_a_row_becomes_turns_that_end_with_an_answer(layout: RowLayout, row: Any, expected: tuple[Turn, ...]) -> None:
    assert lay(layout, row)["turns"] == expected


def test_a_tree_gives_its_best_ranked_path() -> None:
    def reply(role: str, text: str, rank: int | None, *replies: Any, deleted: bool = False) -> dict[str, Any]:
        return {"role": role, "text": text, "rank": rank, "deleted": deleted, "replies": list(replies)}

    tree = reply(
        "prompter",
        "q",
        None,
        reply("assistant", "bad", 1),
        reply("assistant", "gone", 0, deleted=True),
        reply("assistant", "good", 0, reply("prompter", "more?", None)),
    )
    assert lay(RowLayout.tree, {"prompt": tree})["turns"] == turns("q", "good")


@pytest.mark.parametrize(
    ("layout", "row", "error", "reason"),
    [
        (RowLayout.alpaca, {"instruction": "x"}, BadRowError, "output"),
        (RowLayout.alpaca, {"instruction": "x", "output": " "}, DroppedRowError, "empty output"),
        (RowLayout.messages, {"messages": "x"}, BadRowError, "no list of messages"),
        (RowLayout.messages, {"conversations": [], "id": 1}, BadRowError, "fields={messages: conversations}"),
        (RowLayout.messages, {"messages": [{"role": "wizard", "content": "x"}]}, BadRowError, "wizard"),
        (RowLayout.messages, {"messages": [{"role": "user", "content": "x"}]}, DroppedRowError, "no answer"),
        (
            RowLayout.messages,
            {"messages": [{"role": "user", "content": None}]},
            BadRowError,
            "no text, its content is null",
        ),
        (RowLayout.alpaca, {"instruction": "a", "output": "b", "history": [["x"]]}, BadRowError, "list of pairs"),
        (RowLayout.squad, {"paragraphs": [{"context": "c", "qas": "x"}]}, BadRowError, "qas"),
        (RowLayout.squad, {"context": "c", "question": "q", "answers": "x"}, BadRowError, "answers"),
        (RowLayout.squad, {"context": "c", "question": "q", "answers": {"text": []}}, DroppedRowError, "no answer"),
        (RowLayout.text, {"messages": [], "id": 1}, BadRowError, "kind=conversations, layout=messages"),
        (RowLayout.choices, {"query": "q", "choices": ["a", "b"], "gold": True}, BadRowError, "got true"),
        (RowLayout.belebele, {**BELEBELE, "correct_answer_num": "5"}, BadRowError, "must be 1, 2, 3 or 4, got 5"),
        (RowLayout.tree, {}, BadRowError, "no list of messages"),
        (RowLayout.preference, {"prompt": "p", "chosen": "a", "rejected": "a "}, DroppedRowError, "same answers"),
        (
            RowLayout.preference,
            {
                "prompt": [{"from": "gpt", "value": "x"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            BadRowError,
            "does not end with the user",
        ),
        (
            RowLayout.dialogue_preference,
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
            DroppedRowError,
            "differ before the last answer",
        ),
        (RowLayout.choices, {"query": "q", "choices": ["a"], "gold": 0}, DroppedRowError, "fewer than two"),
        (RowLayout.choices, {"query": "q", "choices": ["a", "b"], "gold": 2}, BadRowError, "not one of 2"),
        (
            RowLayout.letters,
            {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "Z"},
            BadRowError,
            "letter",
        ),
        (RowLayout.true_false, {"question": "q", "answer": "maybe"}, BadRowError, "neither"),
    ],
)
def test_a_useless_row_says_why(layout: RowLayout, row: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        notes_of(layout, row)


def test_whole_dialogues_split_into_prompt_and_two_answers() -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: "
    fields = lay(RowLayout.dialogue_preference, {"chosen": f"{start}good\n\nyes", "rejected": f"{start}bad"})
    assert fields == {"prompt": turns("hi", "hello", "and?"), "chosen": "good\n\nyes", "rejected": "bad"}


def test_sharegpt_preferences_keep_the_system_turn() -> None:
    row = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    fields = lay(RowLayout.preference, row, fields={"prompt": "conversations"})
    assert fields == {"prompt": (Turn("system", "s"), Turn("user", "q")), "chosen": "a", "rejected": "b"}


def test_mmlu_answers_are_letters() -> None:
    fields = lay(RowLayout.letters, {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "C"})
    assert (fields["choices"], fields["answer"]) == (("1", "2", "3", "4"), 2)


def test_arabicmmlu_has_as_many_choices_as_are_filled_and_its_context_first() -> None:
    row = {
        "Question": "سؤال",
        "Context": "نص",
        "Answer Key": "B",
        "Subject": "History",
        "Option 1": "ا",
        "Option 2": "ب",
        "Option 3": "",
        "Option 4": "",
        "Option 5": "",
    }
    fields = lay(RowLayout.arabicmmlu, row)
    assert fields == {"question": "نص\n\nسؤال", "choices": ("ا", "ب"), "answer": 1, "subject": "History"}


def test_true_and_false_are_the_two_choices_of_a_statement() -> None:
    fields = lay(RowLayout.true_false, {"id": "Algeria-0", "question": "جملة", "answer": "خطأ"})
    assert (fields["choices"], fields["answer"], fields["subject"]) == (("صح", "خطأ"), 1, "Algeria")


def test_choices_lose_the_word_question() -> None:
    assert lay(RowLayout.choices, {"query": "Question: Why?", "choices": ["a", "b"], "gold": 0})["question"] == "Why?"


def test_turns_of_one_side_in_a_row_are_joined() -> None:
    said = [("user", "a"), ("assistant", "b"), ("assistant", "c"), ("user", "d"), ("assistant", "e")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    assert lay(RowLayout.messages, row)["turns"] == turns("a", "b\n\nc", "d", "e")


def test_what_the_assistant_says_before_anybody_asked_is_left_out() -> None:
    said = [("system", "Be brief"), ("assistant", "Welcome!"), ("user", "Hi"), ("assistant", "Yo")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    assert lay(RowLayout.messages, row)["turns"] == (Turn("system", "Be brief"), *turns("Hi", "Yo"))
    with pytest.raises(DroppedRowError, match="no answer"):
        lay(RowLayout.messages, {"messages": row["messages"][:2]})


def test_system_and_history_of_a_row_are_read() -> None:
    row = {"instruction": "And?", "input": "", "output": "Five", "system": "Be brief", "history": [["Who?", "We."]]}
    assert lay(RowLayout.alpaca, row)["turns"] == (Turn("system", "Be brief"), *turns("Who?", "We.", "And?", "Five"))
    row = {"prompt": "And?", "response": "Five", "system": " ", "history": None}
    assert lay(RowLayout.prompt, row)["turns"] == turns("And?", "Five")
    messages = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Yo"}]
    assert lay(RowLayout.messages, {"system": "s", "messages": messages})["turns"] == (
        Turn("system", "s"),
        *turns("Hi", "Yo"),
    )


def test_an_empty_system_turn_or_tool_result_is_left_out_and_counted() -> None:
    said = [("system", ""), ("user", "q"), ("assistant", "a"), ("tool", "\u200b"), ("assistant", "b"), ("user", "?")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    assert lay(RowLayout.messages, row)["turns"] == turns("q", "a\n\nb")
    assert notes_of(RowLayout.messages, row) == {
        "an empty system turn or tool result left out": 1,
        "what follows the last answer left out": 1,
    }


def test_calls_of_tools_and_their_results_are_turns() -> None:
    call = {"name": "weather", "arguments": {"city": "فاس"}}
    text = '{"name": "weather", "arguments": {"city": "فاس"}}'
    sharegpt = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": text},
        {"from": "observation", "value": "32"},
        {"from": "gpt", "value": "Hot"},
    ]
    openai = [
        {"role": "user", "content": [{"type": "text", "text": "q"}]},
        {"role": "assistant", "content": None, "tool_calls": [{"function": {**call, "arguments": '{"city": "فاس"}'}}]},
        {"role": "tool", "content": "32", "tool_call_id": "1"},
        {"role": "assistant", "content": "Hot", "reasoning_content": "hm"},
    ]
    expected = (Turn("user", "q"), Turn("assistant", text), Turn("tool", "32"), Turn("assistant", "Hot"))
    assert lay(RowLayout.messages, {"messages": sharegpt})["turns"] == expected
    assert lay(RowLayout.messages, {"messages": openai})["turns"] == expected
    unused = unused_fields({"messages": openai, "tools": "[]", "id": ""}, SourceConfig(layout=RowLayout.messages))
    assert list(unused) == ["messages[].reasoning_content", "messages[].tool_call_id", "tools"]


def test_a_reply_of_weight_0_is_context() -> None:
    said = [("user", "q", 1), ("assistant", "bad", 0), ("user", "r", 1), ("assistant", "good", 1)]
    rows = [{"role": role, "content": text, "weight": weight} for role, text, weight in said]
    first, second = (turn for turn in lay(RowLayout.messages, {"messages": rows})["turns"] if turn.role == "assistant")
    assert (first.is_trained, second.is_trained) == (False, True)
    with pytest.raises(DroppedRowError, match="no answer with a weight"):
        lay(RowLayout.messages, {"messages": rows[:2]})


def test_preferences_come_as_messages_too() -> None:
    good, bad = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
    asked = [{"role": "user", "content": "q"}]
    expected = {"prompt": turns("q"), "chosen": "good", "rejected": "bad"}
    trl = {"prompt": asked, "chosen": [good], "rejected": [bad]}
    ultrafeedback = {"prompt": "q", "chosen": [*asked, good], "rejected": [*asked, bad], "score_chosen": 8.0}
    implicit = {"chosen": [*asked, good], "rejected": [*asked, bad]}
    for row in (trl, ultrafeedback, implicit):
        assert lay(RowLayout.preference, row) == expected
    later = [*asked, bad, {"role": "user", "content": "r"}]
    fields = lay(RowLayout.preference, {"prompt": "q", "chosen": [*later, good], "rejected": [*later, bad]})
    assert fields["prompt"] == turns("q", "bad", "r")
    assert list(unused_fields(ultrafeedback, SourceConfig(layout=RowLayout.preference))) == ["score_chosen"]


def test_squad_asks_every_question_below_its_passage() -> None:
    def ask(question: str, *answers: str) -> dict[str, Any]:
        return {"question": question, "answers": [{"text": answer, "answer_start": 0} for answer in answers]}

    row = {
        "title": "t",
        "paragraphs": [{"context": "نص", "qas": [ask("من؟", "هو"), ask("متى؟"), ask("أين؟", "هنا", "هناك")]}],
    }
    records = list(make_records(Row("f:0", 1, row), "s", SourceConfig(layout=RowLayout.squad, language="ar")))
    assert [record.turns for record in records] == [turns("نص\n\nمن؟", "هو"), turns("نص\n\nأين؟", "هنا")]
    assert notes_of(RowLayout.squad, row) == {"a question without answer left out": 1}
    flat = {"context": "نص", "question": "من؟", "answers": {"text": ["هو"], "answer_start": [0]}}
    assert lay(RowLayout.squad, flat)["turns"] == turns("نص\n\nمن؟", "هو")


def test_belebele_has_its_passage_above_the_question() -> None:
    fields = lay(RowLayout.belebele, {**BELEBELE, "correct_answer_num": "3"})
    assert (fields["question"], fields["answer"]) == ("نص\n\nلماذا؟", 2)
    assert fields["choices"] == ("جواب 1", "جواب 2", "جواب 3", "جواب 4")
