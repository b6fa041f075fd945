"""Tasks: what is asked of a model, and how its log-probabilities become scores.

In: records of a corpus and a tokenizer. Out: items of one or more candidate texts to score, and from their
log-probabilities a result per item. Always: everything goes through `score`, a candidate's log-probability covers the
candidate alone, and each aggregate is computed from the stored results of its items.
"""

import heapq
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import numpy as np

from lisan.core.errors import ConfigError
from lisan.corpus.records import Document, Preference, Question, RecordKind, Turn
from lisan.evaluate.metrics import bits_per_byte, mean, standard_error
from lisan.tokens.chat import encode_reply
from lisan.tokens.examples import encode_continuation, encode_texts
from lisan.tokens.labels import Example


class TaskKind(StrEnum):
    bits_per_byte = "bits_per_byte"
    multiple_choice = "multiple_choice"
    preference = "preference"


class Length(StrEnum):
    bytes = "bytes"
    "Log-probability per byte: long answers are not punished, as in lm-eval's acc_norm."
    none = "none"
    "The whole answer's log-probability: right where choices are names that the model has read."


class Prompt(StrEnum):
    plain = "plain"
    "Question and answer lines, for base models."
    chat = "chat"
    "The chat template, for tuned models."


RECORDS = {
    TaskKind.bits_per_byte: RecordKind.documents,
    TaskKind.multiple_choice: RecordKind.questions,
    TaskKind.preference: RecordKind.preferences,
}

WORDS = {"en": ("Question:", "Answer:"), "ar": ("سؤال:", "جواب:"), "ary": ("سؤال:", "جواب:")}
"How a plain prompt marks question and answer; other languages use the English words."


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    kind: TaskKind
    sources: tuple[str, ...]
    "Sources of the corpus."
    split: str = "validation"
    where: dict[str, str] = field(default_factory=dict)
    "Keep records whose meta has these values; alternatives are separated by |: {told_in: en|both}."
    prompt: Prompt = Prompt.plain
    length: Length = Length.bytes
    "What the log-probabilities of choices are divided by before they are compared."
    max_records: int = 1000

    def __post_init__(self) -> None:
        if not self.sources or self.max_records < 1:
            raise ConfigError(f"a task needs sources and max_records >= 1, got {self.sources} and {self.max_records}")


@dataclass(frozen=True, slots=True)
class Item:
    """One thing to score: the candidates of a record."""

    id: str
    candidates: tuple[Example, ...]
    num_bytes: tuple[int, ...]
    "UTF-8 bytes of each candidate."
    answer: int
    num_words: int = 0


@dataclass(frozen=True, slots=True)
class Result:
    """What a model made of an item."""

    id: str
    logps: tuple[float, ...]
    num_bytes: tuple[int, ...]
    answer: int
    num_words: int
    num_tokens: int

    def choose(self, length: Length) -> int:
        """Return the candidate that the model prefers."""
        if length is Length.none:
            return int(np.argmax(self.logps))
        return int(np.argmax([logp / size for logp, size in zip(self.logps, self.num_bytes, strict=True)]))


def keeps(config: TaskConfig, meta: Mapping[str, str]) -> bool:
    return all(meta.get(key) in values.split("|") for key, values in config.where.items())


def make_items(config: TaskConfig, records: Iterable[Any], tokenizer: Any) -> list[Item]:
    """Turn records into items: those that match, or of too many the `max_records` smallest ids, which are hashes: a fair sample."""
    kept = heapq.nsmallest(
        config.max_records, (r for r in records if keeps(config, r.meta)), key=lambda record: record.id
    )
    return [_make_item(config, record, tokenizer) for record in kept]


def _make_item(config: TaskConfig, record: Any, tokenizer: Any) -> Item:
    match record:
        case Document():
            [(example,)] = encode_texts(tokenizer, [record.text])
            return Item(record.id, (example,), (len(record.text.encode()),), 0, len(record.text.split()))
        case Question():
            prompt = question_turns(record) if config.prompt is Prompt.chat else question_text(record)
            texts = record.choices
            return Item(record.id, _candidates(tokenizer, prompt, texts), _sizes(texts), record.answer)
        case Preference():
            texts = (record.chosen, record.rejected)
            prompt = record.prompt if config.prompt is Prompt.chat else preference_text(record)
            return Item(record.id, _candidates(tokenizer, prompt, texts), _sizes(texts), 0)
    raise TypeError(type(record).__name__)


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


def _candidates(tokenizer: Any, prompt: str | tuple[Turn, ...], texts: Sequence[str]) -> tuple[Example, ...]:
    if isinstance(prompt, str):
        return tuple(encode_continuation(tokenizer, prompt, text) for text in texts)
    return tuple(encode_reply(tokenizer, prompt, text) for text in texts)


def _sizes(texts: Sequence[str]) -> tuple[int, ...]:
    return tuple(max(1, len(text.encode())) for text in texts)


def aggregate(config: TaskConfig, results: Sequence[Result]) -> dict[str, float]:
    """Return the metrics of a task."""
    if config.kind is TaskKind.bits_per_byte:
        num_bytes = sum(result.num_bytes[0] for result in results)
        return {
            "bits_per_byte": bits_per_byte(-sum(result.logps[0] for result in results), num_bytes),
            "tokens_per_word": sum(r.num_tokens for r in results) / max(1, sum(r.num_words for r in results)),
            "bytes_per_token": num_bytes / max(1, sum(r.num_tokens for r in results)),
        }
    right = [float(result.choose(config.length) == result.answer) for result in results]
    return {"accuracy": mean(right), "accuracy_stderr": standard_error(right)}
