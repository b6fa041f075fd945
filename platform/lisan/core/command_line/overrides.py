"""Quotes command-line overrides, so that Hydra reads text as text.

Hydra parses a value before it knows the field: `name=1e3` becomes 1000.0, and a path with `=` or Arabic letters is a
syntax error. `quote_text` knows the fields: it quotes the values of text fields and leaves the others to Hydra.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from lisan.core.errors import ConfigError
from lisan.core.renamed import find_new_name

OVERRIDE = re.compile(r"(?P<prefix>\+{0,2})(?P<key>[^=~\s][^=\s]*)=(?P<value>.*)", re.DOTALL)
ESCAPE = re.compile(r"\\([\\()\[\]{}:=, \t])")
"Hydra's escape of a special character; an escaped and a plain character mean the same."
CLOSING = {"[": "]", "{": "}", "(": ")"}
SWEEP = ("-m", "--multirun")


def quote_text(schema: type[Any], arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the values of text fields in quotes; ConfigError where a list or mapping is expected.

    In a sweep a comma outside of brackets stays between alternatives.
    """
    sweeps = any(argument in SWEEP for argument in arguments)
    return [_quote_argument(schema, argument, sweeps) for argument in arguments]


def _quote_argument(schema: type[Any], argument: str, sweeps: bool) -> str:
    match = OVERRIDE.fullmatch(argument)
    if match is None or argument.startswith("-"):
        return argument
    key, value = match["key"], match["value"]
    hint = hint_of(schema, key)
    if hint is None:
        _check_parent(schema, key)
        return argument
    parts = _split(value, ",") if sweeps else [value]
    if sweeps and re.match(r"(choice|range|glob|interval|shuffle|sort|tag)\(", value):
        return argument
    return f"{match['prefix']}{key}=" + ",".join(_quote(part, hint, key) for part in parts)


def _check_parent(schema: type[Any], key: str) -> None:
    """Refuse an unknown field of a nested config; a key without a dot may be a group."""
    parent, _, name = key.rpartition(".")
    beside = bare(hint_of(schema, parent)) if parent else None
    if dataclasses.is_dataclass(beside):
        known = [field.name for field in dataclasses.fields(beside)]
        raise ConfigError(f"{explain_unknown(name, known, f'{parent}.')}; --help shows every field")


def hint_of(schema: Any, key: str) -> Any:
    """Return the type of a dotted key of nested dataclasses and dictionaries; None where there is no such field."""
    hint = schema
    for name in key.split("."):
        hint = bare(hint)
        if hint is Any:
            return Any
        if dataclasses.is_dataclass(hint):
            hint = typing.get_type_hints(hint).get(name)
        elif typing.get_origin(hint) is dict:
            hint = typing.get_args(hint)[1]
        else:
            return None
    return hint


def bare(hint: Any) -> Any:
    """Return the type without `| None`."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return next(argument for argument in typing.get_args(hint) if argument is not type(None))
    return hint


def explain_unknown(name: str, known: Sequence[str], prefix: str = "") -> str:
    """Return the sentence that refuses a field: its new name, the nearest known field, or all known fields."""
    if renamed := find_new_name(f"{prefix}{name}"):
        return renamed
    near = difflib.get_close_matches(name, known, 1)
    meant = f"did you mean {prefix}{near[0]}?" if near else f"there are {', '.join(known)}"
    return f"{prefix}{name} is not a field; {meant}"


def _quote(value: str, hint: Any, key: str) -> str:
    stripped, kind = value.strip(), bare(hint)
    may_be_null = kind is not hint or kind is Any
    if (
        stripped in ("", "???")
        or (may_be_null and stripped.lower() == "null")
        or (kind is not str and kind is not Any and stripped.startswith("${"))
    ):
        return value
    if kind is Any:  # of another job's field, which converts the text
        kind = {"[": list[Any], "{": dict[str, Any]}.get(stripped[0], str)
    if kind is str:
        return _quote_scalar(stripped)
    if typing.get_origin(kind) in (tuple, list):
        [item, *_] = typing.get_args(kind)
        return f"[{','.join(_quote(part, item, key) for part in _items(stripped, '[', key))}]"
    if typing.get_origin(kind) is dict:
        return _quote_mapping(stripped, lambda _: typing.get_args(kind)[1], key)
    if dataclasses.is_dataclass(kind) and stripped.startswith("{"):  # anything else is the choice of a group
        hints = typing.get_type_hints(kind)

        def field_hint(name: str) -> Any:
            if name not in hints:
                raise ConfigError(explain_unknown(name, tuple(hints), f"{key}."))
            return hints[name]

        return _quote_mapping(stripped, field_hint, key)
    return value


def _quote_mapping(value: str, hint_of_name: Callable[[str], Any], key: str) -> str:
    pairs = []
    for item in _items(value, "{", key):
        name, *rest = _split(item, ":", 1)
        plain = name.strip().strip("'\"")
        if not rest:
            raise ConfigError(f"{key} takes name: value between its braces, got {item.strip()!r}")
        pairs.append(f"{name.strip()}: {_quote(rest[0], hint_of_name(plain), f'{key}.{plain}')}")
    return f"{{{', '.join(pairs)}}}"


def _items(value: str, opening: str, key: str) -> list[str]:
    """Return the items between brackets; ConfigError without brackets."""
    if not (value.startswith(opening) and value.endswith(CLOSING[opening])):
        form = f"'{key}=[a,b]'" if opening == "[" else f"'{key}={{name: value}}'"
        kind = "a list" if opening == "[" else "a mapping"
        given = f"; for this one alone: '{key}=[{value}]'" if opening == "[" else ""
        raise ConfigError(f"{key} takes {kind}, written {form}, got {value!r}{given}")
    inner = value[1:-1]
    return _split(inner, ",") if inner.strip() else []


def _split(text: str, separator: str, times: int = -1) -> list[str]:
    """Split at separators outside of quotes and brackets."""
    parts: list[str] = []
    begin = 0
    for index in _outside(text):
        if text[index] == separator and len(parts) != times:
            parts.append(text[begin:index])
            begin = index + 1
    return [*parts, text[begin:]]


def _outside(text: str) -> Iterator[int]:
    """Yield the indices of characters outside of quotes and brackets and not behind a backslash."""
    closing: list[str] = []
    index = 0
    while index < len(text):
        character = text[index]
        in_quotes = bool(closing) and closing[-1] in "'\""
        if character == "\\":
            index += 2
            continue
        if closing and character == closing[-1]:
            closing.pop()
        elif not in_quotes and (character in CLOSING or _opens_quotes(text, index)):
            closing.append(CLOSING.get(character, character))
        elif not closing:
            yield index
        index += 1


def _opens_quotes(text: str, index: int) -> bool:
    """Tell a quote at the beginning of a value from an apostrophe within a word."""
    before = text[:index].rstrip()
    return text[index] in "'\"" and (not before or before[-1] in ",:[{(=")


def _quote_scalar(value: str) -> str:
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        return value
    plain = ESCAPE.sub(r"\1", value)
    # In Hydra's quotes a backslash means itself, except before a quote and at the end.
    return "'" + re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), plain) + "'"
