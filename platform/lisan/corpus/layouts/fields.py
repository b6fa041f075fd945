"""Fields of raw rows as text, for all layouts.

A row without a required field is a `BadRowError` (quarantined), a row with nothing to learn from a `DroppedRowError` (counted).
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lisan.corpus.config import RowLayout, SourceConfig
from lisan.corpus.sources.lines import BadRowError, DroppedRowError

Fields = dict[str, Any]
"Constructor arguments of a record, without id and source."
RowParser = Callable[[object, SourceConfig], Iterable[Fields]]

FIELDS: dict[RowLayout, tuple[str, ...]] = {
    RowLayout.text: ("text",),
    RowLayout.markdown: ("text",),
    RowLayout.gutenberg: ("text",),
    RowLayout.headline: ("text", "headline"),
    RowLayout.parallel: ("first", "second"),
    RowLayout.prompt: ("prompt", "response", "system", "history"),
    RowLayout.alpaca: ("instruction", "input", "output", "system", "history"),
    RowLayout.seed_task: ("instruction", "instances"),
    RowLayout.messages: ("messages", "system"),
    RowLayout.tree: ("prompt",),
    RowLayout.squad: ("paragraphs", "context", "question", "answers"),
    RowLayout.preference: ("prompt", "chosen", "rejected", "system"),
    RowLayout.dialogue_preference: ("chosen", "rejected"),
    RowLayout.letters: ("question", "A", "B", "C", "D", "answer"),
    RowLayout.arabicmmlu: ("Question", "Answer Key", "Subject", "Context", *(f"Option {n}" for n in range(1, 6))),
    RowLayout.true_false: ("question", "answer", "id"),
    RowLayout.choices: ("query", "choices", "gold"),
    RowLayout.belebele: ("flores_passage", "question", *(f"mc_answer{n}" for n in range(1, 5)), "correct_answer_num"),
}
"Every field that a layout reads, by its own name; `fields` of a source renames them."


def columns_of(source: SourceConfig) -> tuple[str, ...]:
    """Return the names, in the source's files, of all fields that its layout reads."""
    return tuple(source.fields.get(name, name) for name in FIELDS[source.layout])


SHAPES = {
    "messages": "kind=conversations, layout=messages",
    "conversations": "kind=conversations, layout=messages, fields={messages: conversations}",
    "instruction": "kind=conversations, layout=alpaca",
    "paragraphs": "kind=conversations, layout=squad",
    "chosen": "kind=preferences, layout=preference",
    "mc_answer1": "kind=questions, layout=belebele",
    "Option 1": "kind=questions, layout=arabicmmlu",
    "choices": "kind=questions, layout=choices",
}
"Fields by which data sets of other layouts are known."


def field_of(row: object, source: SourceConfig, name: str, optional: bool = False) -> Any:
    """Return a field under the name it has in this source; BadRowError that names what is there instead."""
    field = source.fields.get(name, name)
    if not isinstance(row, Mapping):
        raise BadRowError(f"expected an object with a field {field}, got {type(row).__name__}")
    value = row.get(field)
    if value is None and not optional:
        state = f"field {field} is null" if field in row else f"no field {field}"
        shape = next((how for key, how in SHAPES.items() if key in row), "")
        remedy = f"such rows are read with {shape}" if shape else f"name it with fields={{{name}: ...}}"
        raise BadRowError(f"{state}; the row has {', '.join(map(str, row)) or 'no fields'}; {remedy}")
    return value


def text_of(row: object, source: SourceConfig, name: str, optional: bool = False) -> str:
    """Return a field as text; empty where it is missing and `optional`."""
    value = field_of(row, source, name, optional)
    if value is not None and not isinstance(value, str):
        raise BadRowError(f"a {type(value).__name__} in field {source.fields.get(name, name)}; expected text")
    return value or ""


def filled(row: object, source: SourceConfig, *names: str) -> list[str]:
    """Return fields that must not be blank."""
    values = [text_of(row, source, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not value.strip():
            raise DroppedRowError(f"empty {name}")
    return values


def required_text(row: object, source: SourceConfig) -> str:
    text = row if isinstance(row, str) else text_of(row, source, "text")
    if not text.strip():
        raise DroppedRowError("empty text")
    return text
