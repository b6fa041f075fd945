"""Renders the page of `--help`: the choices of a job, and every field with its value, type and docstring.

The docstring of a field is the string literal below it, read from the source of its dataclass.
"""

import ast
import dataclasses
import inspect
import textwrap
import typing
from collections.abc import Iterator, Mapping
from enum import Enum
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from lisan.core.command_line.choices import list_choices, read_groups
from lisan.core.command_line.overrides import bare
from lisan.core.identity import is_identity

WIDTH = 100
TYPES = {str: "text", int: "whole number", float: "number", bool: "true or false", Any: "anything"}
TAIL = """Flags: --cfg job prints the config and runs nothing; --multirun a=1,2 runs the job once for each value; --hydra-help \
lists Hydra's other flags. A value with spaces, brackets or $ stands in the shell's quotes: 'sources=[web,books]'."""


def render_help(job_file: Path, schema: type[Any], values: Any) -> str:
    """Return the page; `values` is the composed config as plain containers, `???` where a field must be set."""
    conf_dir, job = job_file.parents[1] / "conf", job_file.stem
    title = ast.get_docstring(ast.parse(job_file.read_text(encoding="utf-8"))) or job
    lines = [title, "", f"  python jobs/{job_file.name} key=value ...", "", "Choices, as group=choice:"]
    for group, chosen in read_groups(conf_dir, job).items():
        names = ", ".join(list_choices(conf_dir, group, job, schema))
        lines += _wrap(f"{group}={chosen or '...'}  [{names}]", 2, 6) if names else []
    lines += ["", "Fields, as field=value:"]
    for key, hint, value, docstring in _list_fields(schema, values, ""):
        needed = ", must be set" if value == "???" else ""
        lines += _wrap(f"{key}{_show_value(value)}  [{describe_type(hint)}{needed}]", 2, 6)
        lines += _wrap(docstring, 6, 6)
    return "\n".join([*lines, "", *_wrap(TAIL, 0, 2)])


def _list_fields(schema: Any, values: Any, key: str) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield key, type, value and docstring of every field; a nested dataclass before its fields."""
    hints, docstrings = typing.get_type_hints(schema), read_docstrings(schema)
    for field in sorted(dataclasses.fields(schema), key=lambda field: not is_identity(field)):
        hint, name = hints[field.name], f"{key}{field.name}"
        value = values.get(field.name) if isinstance(values, Mapping) else _default(field)
        inner = bare(hint)
        arguments = typing.get_args(inner)
        if dataclasses.is_dataclass(inner):
            if inner is not hint or docstrings[field.name]:
                yield name, hint, None if value is None else {}, docstrings[field.name]
            yield from _list_fields(inner, value, f"{name}.")
        elif len(arguments) == 2 and dataclasses.is_dataclass(arguments[1]):
            yield name, hint, {}, docstrings[field.name]
            yield from _list_fields(arguments[1], None, f"{name}.NAME.")
        else:
            yield name, hint, value, docstrings[field.name]


def _default(field: "dataclasses.Field[Any]") -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    made = "???" if field.default_factory is dataclasses.MISSING else field.default_factory()
    return dataclasses.asdict(made) if dataclasses.is_dataclass(made) and not isinstance(made, type) else made


def read_docstrings(schema: Any) -> dict[str, str]:
    """Return the docstring of every field of a dataclass, inherited ones too; empty where there is none."""
    docstrings = {field.name: "" for field in dataclasses.fields(schema)}
    kinds: list[Any] = [kind for kind in reversed(schema.__mro__) if dataclasses.is_dataclass(kind)]
    for kind in kinds:
        docstrings |= _read_class(inspect.getfile(kind), kind.__name__)
    return docstrings


@cache
def _parse(path: str) -> ast.Module:
    return ast.parse(Path(path).read_text(encoding="utf-8"))


def _read_class(path: str, name: str) -> dict[str, str]:
    body = next(node.body for node in _parse(path).body if isinstance(node, ast.ClassDef) and node.name == name)
    docstrings = {}
    for node, after in pairwise(body):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and isinstance(after, ast.Expr):
            text = ast.literal_eval(after.value) if isinstance(after.value, ast.Constant) else ""
            docstrings[node.target.id] = " ".join(str(text).split())
    return docstrings


def describe_type(hint: Any) -> str:
    """Return a type in words: `text or null`, `list of text`, the choices of an enum."""
    kind = bare(hint)
    arguments = typing.get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Enum):
        words = " | ".join(member.name for member in kind)
    elif typing.get_origin(kind) in (tuple, list):
        words = f"list of {describe_type(arguments[0])}"
    elif typing.get_origin(kind) is dict:
        words = f"mapping of name to {describe_type(arguments[1])}"
    else:
        words = "fields below" if dataclasses.is_dataclass(kind) else TYPES.get(kind, str(kind))
    return words if kind is hint else f"{words} or null"


def _show_value(value: Any) -> str:
    if value == "???":
        return ""
    if isinstance(value, bool) or value is None:
        text = {True: "true", False: "false", None: "null"}[value]
    elif isinstance(value, list | tuple):
        text = f"[{', '.join(map(str, value))}]"
    elif isinstance(value, Mapping):
        text = "{" + ", ".join(f"{name}: {one}" for name, one in value.items()) + "}"
        text = "" if value == {} else text
    else:
        text = str(value)
    return f"={textwrap.shorten(text, 60)}" if text else ""


def _wrap(text: str, indent: int, hanging: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
