"""What layouts share: getting text out of a row, and the two ways in which a row is of no use.

In: a row's value. Out: its fields as text. Always: a row without the field is a `BadRowError` (quarantined), a row with
nothing to learn from is a `DroppedRowError` (counted). Used by `layouts` and `exchanges` only.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lisan.corpus.sources import SourceConfig

Fields = dict[str, Any]
"Constructor arguments of a record, without id and source."
Lay = Callable[[Any, SourceConfig], Iterable[Fields]]


class BadRowError(Exception):
    """A row that is not what its layout expects; the message is the reason in quarantine."""


class DroppedRowError(Exception):
    """A row that is well formed and of no use; the message is the reason counted in the manifest."""


def text_of(row: Any, source: SourceConfig, name: str, optional: bool = False) -> str:
    """Return a field as text, under the name it has in this source."""
    if not isinstance(row, Mapping):
        raise BadRowError(f"expected an object with a field {source.fields.get(name, name)}, got {type(row).__name__}")
    value = row.get(source.fields.get(name, name))
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        state = "no field" if value is None else f"a {type(value).__name__} in field"
        raise BadRowError(f"{state} {source.fields.get(name, name)}; expected text")
    return value


def filled(row: Any, source: SourceConfig, *names: str) -> list[str]:
    """Return fields that must not be blank."""
    values = [text_of(row, source, name) for name in names]
    for name, value in zip(names, values, strict=True):
        if not value.strip():
            raise DroppedRowError(f"empty {name}")
    return values


def plain(row: Any, source: SourceConfig) -> str:
    text = row if isinstance(row, str) else text_of(row, source, "text")
    if not text.strip():
        raise DroppedRowError("empty text")
    return text
