from typing import Any

import pytest

from lisan.corpus.fields import BadRowError, DroppedRowError
from lisan.corpus.layouts import LAYOUTS
from lisan.corpus.records import Turn
from lisan.corpus.sources import Layout, SourceConfig

TEMPLATE = "Below is an instruction that describes a task. Write a response.\n\n"


def lay(layout: Layout, row: Any, **options: Any) -> dict[str, Any]:
    (fields,) = LAYOUTS[layout][1](row, SourceConfig(layout=layout, language="en", **options))
    return fields


def turns(*contents: str) -> tuple[Turn, ...]:
    return tuple(Turn("assistant" if index % 2 else "user", content) for index, content in enumerate(contents))


@pytest.mark.parametrize(
    ("layout", "row", "expected"),
    [
        (Layout.alpaca, {"instruction": "Sum", "input": "1 2", "output": "3"}, turns("Sum\n\n1 2", "3")),
        (Layout.alpaca, {"instruction": "Hi", "input": "", "output": "Yo"}, turns("Hi", "Yo")),
        (Layout.prompt, {"prompt": "Hi ", "response": " Yo"}, turns("Hi", "Yo")),
        (
            Layout.prompt,
            {
                "prompt": f"{TEMPLATE}### Instruction:\nDo\nit\n\n### Input:\nx\n\n### Response:\n",
                "response": "Done",
            },
            turns("Do\nit\n\nx", "Done"),
        ),
        (
            Layout.seed_task,
            {"instruction": "A", "instances": [{"input": "b", "output": "c"}, {}]},
            turns("A\n\nb", "c"),
        ),
        (
            Layout.messages,
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
            Layout.messages,
            {"messages": [{"from": "human", "value": "1"}, {"from": "gpt", "value": "2"}]},
            turns("1", "2"),
        ),
    ],
)
def test_a_row_becomes_turns_that_end_with_an_answer(layout: Layout, row: Any, expected: tuple[Turn, ...]) -> None:
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
    assert lay(Layout.tree, {"prompt": tree})["turns"] == turns("q", "good")


@pytest.mark.parametrize(
    ("layout", "row", "error", "reason"),
    [
        (Layout.alpaca, {"instruction": "x"}, BadRowError, "output"),
        (Layout.alpaca, {"instruction": "x", "output": " "}, DroppedRowError, "empty output"),
        (Layout.messages, {"messages": "x"}, BadRowError, "no list of messages"),
        (Layout.messages, {"messages": [{"role": "wizard", "content": "x"}]}, BadRowError, "wizard"),
        (Layout.messages, {"messages": [{"role": "user", "content": "x"}]}, DroppedRowError, "no answer"),
        (Layout.tree, {}, BadRowError, "no list of messages"),
        (Layout.preference, {"prompt": "p", "chosen": "a", "rejected": "a "}, DroppedRowError, "same answers"),
        (
            Layout.sharegpt_preference,
            {
                "conversations": [{"from": "gpt", "value": "x"}],
                "chosen": {"from": "gpt", "value": "a"},
                "rejected": {"from": "gpt", "value": "b"},
            },
            BadRowError,
            "does not end with the user",
        ),
        (
            Layout.dialogue_preference,
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
            DroppedRowError,
            "differ before the last answer",
        ),
        (Layout.choices, {"query": "q", "choices": ["a"], "gold": 0}, DroppedRowError, "fewer than two"),
        (Layout.choices, {"query": "q", "choices": ["a", "b"], "gold": 2}, BadRowError, "not one of 2"),
        (
            Layout.letters,
            {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "Z"},
            BadRowError,
            "letter",
        ),
        (Layout.true_false, {"question": "q", "answer": "maybe"}, BadRowError, "neither"),
    ],
)
def test_a_useless_row_says_why(layout: Layout, row: Any, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        lay(layout, row)


def test_whole_dialogues_split_into_prompt_and_two_answers() -> None:
    start = "\n\nHuman: hi\n\nAssistant: hello\n\nHuman: and?\n\nAssistant: "
    fields = lay(Layout.dialogue_preference, {"chosen": f"{start}good\n\nyes", "rejected": f"{start}bad"})
    assert fields == {"prompt": turns("hi", "hello", "and?"), "chosen": "good\n\nyes", "rejected": "bad"}


def test_sharegpt_preferences_keep_the_system_turn() -> None:
    row = {
        "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "a"},
        "rejected": {"from": "gpt", "value": "b"},
    }
    fields = lay(Layout.sharegpt_preference, row)
    assert fields == {"prompt": (Turn("system", "s"), Turn("user", "q")), "chosen": "a", "rejected": "b"}


def test_mmlu_answers_are_letters() -> None:
    fields = lay(Layout.letters, {"question": "q", "A": "1", "B": "2", "C": "3", "D": "4", "answer": "C"})
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
    fields = lay(Layout.arabicmmlu, row)
    assert fields == {"question": "نص\n\nسؤال", "choices": ("ا", "ب"), "answer": 1, "subject": "History"}


def test_true_and_false_are_the_two_choices_of_a_statement() -> None:
    fields = lay(Layout.true_false, {"id": "Algeria-0", "question": "جملة", "answer": "خطأ"})
    assert (fields["choices"], fields["answer"], fields["subject"]) == (("صح", "خطأ"), 1, "Algeria")


def test_choices_lose_the_word_question() -> None:
    assert lay(Layout.choices, {"query": "Question: Why?", "choices": ["a", "b"], "gold": 0})["question"] == "Why?"


def test_turns_of_one_side_in_a_row_are_joined() -> None:
    from lisan.corpus.exchanges import _dialogue

    turns = _dialogue("\n\nHuman: a\n\nAssistant: b\n\nAssistant: c\n\nHuman: d")
    assert [(turn.role, turn.content) for turn in turns] == [("user", "a"), ("assistant", "b\n\nc"), ("user", "d")]


def test_what_the_assistant_says_before_anybody_asked_is_left_out() -> None:
    said = [("system", "Be brief"), ("assistant", "Welcome!"), ("user", "Hi"), ("assistant", "Yo")]
    row = {"messages": [{"role": role, "content": content} for role, content in said]}
    assert lay(Layout.messages, row)["turns"] == (Turn("system", "Be brief"), *turns("Hi", "Yo"))
    with pytest.raises(DroppedRowError, match="no answer"):
        lay(Layout.messages, {"messages": row["messages"][:2]})
