"""Tasks: turns the records of a corpus into items with one or more candidates to score.

The labels of a candidate cover its answer only. A candidate with a prompt is never divided between rows. Left-out records and cut
prompts are counted.
"""

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lisan.core.errors import DataError
from lisan.data.examples import encode_continuation, encode_texts
from lisan.evaluate.config import PromptStyle, TaskConfig, TaskKind
from lisan.records.kinds import RecordKind
from lisan.records.records import Document, Preference, Question, Record, Turn
from lisan.tokenizer.chat.chat_template import encode_answer
from lisan.tokenizer.labels import Example

RECORDS = {
    TaskKind.bits_per_byte: RecordKind.documents,
    TaskKind.multiple_choice: RecordKind.questions,
    TaskKind.preference: RecordKind.preferences,
}

WORDS = {"en": ("Question:", "Answer:"), "ar": ("سؤال:", "جواب:"), "ary": ("سؤال:", "جواب:")}
"Words before question and answer in plain prompts; other languages use the English ones."


@dataclass(frozen=True, slots=True)
class Item:
    """The candidates of a record: each is a prompt and an answer, with labels on the answer."""

    id: str
    candidates: tuple[Example, ...]
    texts: tuple[str, ...]
    "The answer of each candidate, or the document."
    answer: int
    prompt: str = ""
    group: str = ""
    "Subject of a question, or else the source."
    is_truncated: bool = False
    "Whether the beginning of the prompt was cut to fit the context length."


@dataclass(slots=True)
class TaskCounts:
    """Counts of records that match a task, are left out or are changed."""

    matched: int = 0
    "Records that `where` keeps, before `max_records` limits them."
    left_out: Counter[str] = field(default_factory=Counter)
    "Records that cannot be scored, by reason."
    truncated: int = 0
    spelt_controls: int = 0
    "Records whose text contains a control token, which is encoded as plain text."


def keeps(config: TaskConfig, meta: Mapping[str, str]) -> bool:
    return all(meta.get(key) in values.split("|") for key, values in config.where.items())


def choose_records(config: TaskConfig, records: Iterable[Record], counts: TaskCounts) -> list[Record]:
    """Return the records to score: of those that match, the `max_records` with the smallest ids.

    Ids are hashes, so the sample is unbiased.
    """

    def matching() -> Iterator[Record]:
        for record in records:
            if keeps(config, record.meta):
                counts.matched += 1
                yield record

    chosen = heapq.nsmallest(config.max_records, matching(), key=lambda record: record.id)
    faults = [find_fault(record) for record in chosen]
    counts.left_out.update(fault for fault in faults if fault is not None)
    return [record for record, fault in zip(chosen, faults, strict=True) if fault is None]


def find_fault(record: Record) -> str | None:
    """Return the reason why a record cannot be scored; None when it can."""
    match record:
        case Document():
            return None if record.text else "no text"
        case Question():
            if len(record.choices) < 2:
                return "fewer than two choices"
            if not 0 <= record.answer < len(record.choices):
                return "an answer outside the choices"
            return None if all(choice.strip() for choice in record.choices) else "an empty choice"
        case Preference():
            if record.chosen == record.rejected:
                return "a chosen reply equal to the rejected one"
            return None if record.chosen.strip() and record.rejected.strip() else "an empty reply"
    raise TypeError(type(record).__name__)


def make_items(config: TaskConfig, records: Iterable[Record], tokenizer: Any) -> list[Item]:
    """Turn the records to score into items."""
    return [make_item(config, record, tokenizer) for record in choose_records(config, records, TaskCounts())]


def make_item(config: TaskConfig, record: Record, tokenizer: Any) -> Item:
    """Encode a record without a fault; DataError when the chat template cannot render it."""
    if isinstance(record, Document):
        [(example,)] = encode_texts(tokenizer, [record.text])
        return Item(record.id, (example,), (record.text,), 0, group=record.source)
    if isinstance(record, Question):
        texts, answer, turns, plain = record.choices, record.answer, question_turns(record), question_text(record)
    else:
        assert isinstance(record, Preference)
        texts, answer, turns, plain = (record.chosen, record.rejected), 0, record.prompt, preference_text(record)
    try:
        if config.prompt is PromptStyle.chat:
            candidates = tuple(encode_answer(tokenizer, turns, text) for text in texts)
        else:
            candidates = tuple(encode_continuation(tokenizer, plain, text) for text in texts)
    except DataError as error:
        raise DataError(f"record {record.id} of {record.source}: {error}") from error
    shown = "\n\n".join(turn.content for turn in turns)
    return Item(record.id, candidates, texts, answer, shown, getattr(record, "subject", "") or record.source)


def fit_items(items: Iterable[Item], context_length: int, begin_id: int | None, counts: TaskCounts) -> list[Item]:
    """Cut the beginning of prompts until every candidate fits; leave out items whose answers leave no room for a prompt.

    Documents stay whole: they are scored in spans of the context length.
    """
    fitting = []
    for item in items:
        short = item if len(item.candidates) == 1 else _shorten(item, context_length, begin_id)
        if short is None:
            counts.left_out["an answer longer than context_length"] += 1
            continue
        counts.truncated += short.is_truncated
        fitting.append(short)
    return fitting


def _shorten(item: Item, context_length: int, begin_id: int | None) -> Item | None:
    """Cut the excess tokens of the longest candidate from the beginning of every candidate's prompt.

    The begin-of-text token stays. Returns None when no token of a prompt would be left.
    """
    num_cut = max(len(example) for example in item.candidates) - context_length
    if num_cut <= 0:
        return item
    first = int(item.candidates[0].input_ids[0] == begin_id)
    if any(int((example.labels >= 0).argmax()) <= first + num_cut for example in item.candidates):
        return None
    cut = slice(first, first + num_cut)
    candidates = (Example(np.delete(one.input_ids, cut), np.delete(one.labels, cut)) for one in item.candidates)
    return replace(item, candidates=tuple(candidates), is_truncated=True)


def question_text(question: Question) -> str:
    ask, answer = WORDS.get(question.language, WORDS["en"])
    return f"{ask} {question.question}\n{answer}"


def question_turns(question: Question) -> tuple[Turn, ...]:
    return (Turn("user", question.question),)


def preference_text(preference: Preference) -> str:
    ask, answer = WORDS.get(preference.language, WORDS["en"])
    return (
        "\n".join(f"{ask if turn.role == 'user' else answer} {turn.content}" for turn in preference.prompt)
        + f"\n{answer}"
    )
