"""Records of a corpus and their Arrow schemas.

A record is a `Document` (text), a `Conversation` (turns), a `Preference` (a better and a worse reply) or a `Question` (choices
to score). Ids are unique within a source.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa
import xxhash

from lisan.records.kinds import RecordKind

ROLES = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Document:
    id: str
    text: str
    source: str
    language: str
    "BCP 47-like label: en, ar (Modern Standard Arabic), ary (Moroccan), arz (Egyptian), ..."
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Turn:
    role: str
    content: str
    is_trained: bool = True
    "Whether a reply of a conversation has labels in training; no effect elsewhere."


@dataclass(frozen=True, slots=True)
class Conversation:
    id: str
    turns: tuple[Turn, ...]
    source: str
    language: str
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Preference:
    id: str
    prompt: tuple[Turn, ...]
    "Turns up to the user's last one, inclusive."
    chosen: str
    rejected: str
    source: str
    language: str
    meta: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Question:
    id: str
    question: str
    choices: tuple[str, ...]
    answer: int
    "Index of the right choice."
    source: str
    language: str
    subject: str = ""
    "Topic; reports list accuracy by it."
    meta: dict[str, str] = field(default_factory=dict)


Record = Document | Conversation | Preference | Question

_TURN = [("role", pa.string()), ("content", pa.large_string()), ("is_trained", pa.bool_())]
_TURNS = pa.list_(pa.struct(_TURN))
_COMMON = [("source", pa.string()), ("language", pa.string()), ("meta", pa.map_(pa.string(), pa.string()))]

SCHEMAS: dict[RecordKind, pa.Schema] = {
    RecordKind.documents: pa.schema([("id", pa.string()), ("text", pa.large_string()), *_COMMON]),
    RecordKind.conversations: pa.schema([("id", pa.string()), ("turns", _TURNS), *_COMMON]),
    RecordKind.preferences: pa.schema(
        [
            ("id", pa.string()),
            ("prompt", _TURNS),
            ("chosen", pa.large_string()),
            ("rejected", pa.large_string()),
            *_COMMON,
        ]
    ),
    RecordKind.questions: pa.schema(
        [
            ("id", pa.string()),
            ("question", pa.large_string()),
            ("choices", pa.list_(pa.large_string())),
            ("answer", pa.int32()),
            ("subject", pa.string()),
            *_COMMON,
        ]
    ),
}

CLASSES: dict[RecordKind, type[Any]] = {
    RecordKind.documents: Document,
    RecordKind.conversations: Conversation,
    RecordKind.preferences: Preference,
    RecordKind.questions: Question,
}


def to_table(records: list[Any], kind: RecordKind) -> pa.Table:
    """Return records of one kind as an Arrow table of its schema."""
    return pa.Table.from_pylist([asdict(record) for record in records], schema=SCHEMAS[kind])


def from_table(table: pa.Table, kind: RecordKind) -> list[Any]:
    """Return the records of a table; the inverse of `to_table`."""
    return [_from_row(row, kind) for row in table.to_pylist()]


def _from_row(row: dict[str, Any], kind: RecordKind) -> Any:
    row = {name: row[name] for name in SCHEMAS[kind].names}
    row["meta"] = dict(row["meta"] or [])
    for name in ("turns", "prompt"):
        if name in row:
            row[name] = tuple(Turn(**turn) for turn in row[name])
    if "choices" in row:
        row["choices"] = tuple(row["choices"])
    return CLASSES[kind](**row)


def record_id(source: str, key: str) -> str:
    """Return the id of a record: 128 bits of source and key, stable across runs and machines."""
    return xxhash.xxh3_128_hexdigest(f"{source}\x1f{key}".encode())
