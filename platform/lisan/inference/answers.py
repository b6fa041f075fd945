"""Answers to prompts: their faults, their scores and their Parquet files."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.storage import Location
from lisan.corpus.clean.language import fits_script, guess_language
from lisan.inference.chat_client import ChatReply
from lisan.inference.prompts import Prompt
from lisan.records.records import Turn


@dataclass(frozen=True, slots=True)
class Answer:
    text: str
    fault: str = ""
    """Reason for which it is not judged: cut, empty, repeated or wrong_language. unjudged: the judge gave no score, or had no
    other answer to compare it with."""
    score: float | None = None


@dataclass(frozen=True, slots=True)
class AnsweredPrompt:
    prompt: Prompt
    answers: tuple[Answer, ...]
    refusal: str = ""
    "Message with which the endpoint refused the prompt."


_TURNS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.large_string())]))
_ANSWERS = pa.list_(pa.struct([("text", pa.large_string()), ("fault", pa.string()), ("score", pa.float64())]))
_TEXTS = [("reply", pa.large_string()), ("source", pa.string()), ("language", pa.string())]
SCHEMA = pa.schema([("id", pa.string()), ("turns", _TURNS), *_TEXTS, ("answers", _ANSWERS), ("refusal", pa.string())])


def find_faults(replies: Sequence[ChatReply], prompt: Prompt, same_language: bool) -> tuple[Answer, ...]:
    """Turn replies into answers, marking those that cannot be in a pair.

    With `same_language` an answer must be in the script of the good reply, or of the prompt where no good reply is known.
    """
    language = guess_language(prompt.reply) if prompt.reply else prompt.language
    seen: set[str] = set()
    answers: list[Answer] = []
    for reply in replies:
        text = reply.text.strip()
        fault = "cut" if reply.is_cut else "empty" if not text else "repeated" if text in seen else ""
        if same_language and not fault and language != "und" and not fits_script(text, language):
            fault = "wrong_language"
        seen.add(text)
        answers.append(Answer(text, fault))
    return tuple(answers)


def add_scores(answered: AnsweredPrompt, scores: Iterable[float | None]) -> AnsweredPrompt:
    """Give the answers without a fault their scores, in order; None or a score that is not finite makes one `unjudged`."""
    left = (score if score is not None and math.isfinite(score) else None for score in scores)
    judged = tuple(
        answer if answer.fault else replace(answer, score=score, fault="" if score is not None else "unjudged")
        for answer in answered.answers
        for score in (None if answer.fault else next(left),)
    )
    return replace(answered, answers=judged)


def write_answers(file: Location, answered: Iterable[AnsweredPrompt]) -> None:
    records = [
        {**asdict(one.prompt), "answers": [asdict(answer) for answer in one.answers], "refusal": one.refusal}
        for one in answered
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, SCHEMA), sink, compression="zstd")
    file.write_bytes(sink.getvalue().to_pybytes())


def read_answers(file: Location) -> list[AnsweredPrompt]:
    records = pq.read_table(file.full_path, filesystem=file.file_system).to_pylist()
    return [_from_record(record) for record in records]


def _from_record(record: dict[str, Any]) -> AnsweredPrompt:
    turns = tuple(Turn(**turn) for turn in record["turns"])
    prompt = Prompt(record["id"], turns, record["reply"], record["source"], record["language"])
    return AnsweredPrompt(prompt, tuple(Answer(**answer) for answer in record["answers"]), record["refusal"])
