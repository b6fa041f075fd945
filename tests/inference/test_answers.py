"""Faults, scores and storage of answers."""

from pathlib import Path

from lisan.core.storage import Location
from lisan.inference.answers import Answer, AnsweredPrompt, add_scores, find_faults, read_answers, write_answers
from lisan.inference.chat_client import ChatReply
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn

PROMPT = Prompt("p1", (Turn("user", "شنو سميتك؟"),), "سميتي ليسان.", "chats", "ary")


def test_faults_of_answers_are_named() -> None:
    texts = ("سميتي ليسان ", "", "طويل", "سميتي ليسان", "My name is Lisan.")
    found = [ChatReply(text, is_cut=text == "طويل") for text in texts]
    faults = ["", "empty", "cut", "repeated", ""]
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=False)] == faults
    faults[-1] = "wrong_language"
    assert [answer.fault for answer in find_faults(found, PROMPT, same_language=True)] == faults


def test_answers_must_be_in_the_script_of_the_good_reply_not_of_the_prompt() -> None:
    translation = Prompt("p", (Turn("user", "translate: الرباط"),), "Rabat, the capital", "s", "ar")
    [answer] = find_faults([ChatReply("Rabat it is", is_cut=False)], translation, same_language=True)
    assert not answer.fault


def test_answers_without_a_fault_get_the_scores() -> None:
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


def test_answers_are_read_as_written(tmp_path: Path) -> None:
    answered = [
        AnsweredPrompt(PROMPT, (Answer("a", score=0.1 + 0.2), Answer("b", "cut")), ""),
        AnsweredPrompt(PROMPT, (), "too long"),
    ]
    write_answers(Location(str(tmp_path)) / "part", answered)
    assert read_answers(Location(str(tmp_path)) / "part") == answered
