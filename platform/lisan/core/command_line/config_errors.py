"""Turns errors of Hydra and OmegaConf into one sentence: the key, the value, the nearest field."""

import dataclasses
import re
import typing
from typing import Any

from lisan.core.command_line.overrides import bare, explain_unknown, hint_of
from lisan.core.errors import first_line


def explain(error: BaseException, schema: type[Any]) -> str:
    """Return key and reason of an error as one sentence, with the nearest field where the key is unknown."""
    text = str(error)
    full_key = re.search(r"full_key: (\S+)", text)
    variable = re.search(r"Environment variable '(\w+)' not found", text)
    if variable is not None:
        return (
            f"the environment variable {variable[1]} must be set: {full_key[1] if full_key else 'the config'} reads it"
        )
    overridden = re.search(r"Could not override '([^']+)'", text)
    absent = re.search(r"Key '[^']+' (?:is )?not in (?:struct|'\w+')", text)
    if overridden is not None or (absent is not None and full_key is not None):
        return _explain_unknown((overridden or full_key)[1], schema)  # type: ignore[index]
    if full_key is not None and (expected := _explain_container(full_key[1], text, schema)):
        return expected
    begun = re.match(r"Error merging override ([^=]+)\.(\w+)=", text)
    if begun is not None and "is not a subclass of" in f"{text} {error.__cause__}":
        parent, _, name = begun[1].rpartition(".")
        return (
            f"{begun[1]} is not there yet; give all of its fields at once: '{parent}={{{name}: {{{begun[2]}: ...}}}}'"
        )
    unequal = re.match(r"Error parsing override '([^'=\n]+)'", text)
    if unequal is not None:
        return f"{unequal[1]} sets nothing: write {unequal[1]}=value"
    return _one_sentence(error)


def _explain_unknown(key: str, schema: type[Any]) -> str:
    """Name the nearest field of the same nested config, or of the whole config."""
    parent, _, name = key.rpartition(".")
    beside = bare(hint_of(schema, parent)) if parent else schema
    if dataclasses.is_dataclass(beside):
        known, prefix = [field.name for field in dataclasses.fields(beside)], f"{parent}." if parent else ""
    else:
        known, prefix, name = field_names(schema), "", key
    return f"{explain_unknown(name, known, prefix)}; --help shows every field"


def _explain_container(key: str, text: str, schema: type[Any]) -> str:
    """Return the notation of a list or mapping when the value is neither; empty for other errors."""
    kind = typing.get_origin(bare(hint_of(schema, key)))
    if kind in (tuple, list) and "ListConfig" in text:
        return f"{key} takes a list, written [a, b]"
    if kind is dict and "Cannot assign" in text:
        return f"{key} takes a mapping, written {{name: value}}"
    return ""


def _one_sentence(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("object_type=", "Set the environment", "See https"))]
    text = "; ".join(lines).split("; Config search path:")[0]
    text = text.replace("full_key: ", "key ").replace(".;", ";").removeprefix("Error merging override ")
    cause = error.__cause__
    if cause is not None and str(cause).strip() and first_line(cause) not in text:
        text += f" ({first_line(cause)})"
    return text or type(error).__name__


def field_names(schema: Any, key: str = "") -> list[str]:
    """Return every dotted key of a schema."""
    names: list[str] = []
    for name, hint in typing.get_type_hints(schema).items():
        inner = bare(hint)
        names += field_names(inner, f"{key}{name}.") if dataclasses.is_dataclass(inner) else [f"{key}{name}"]
    return names
