"""Turns lists of messages, in the form of OpenAI (`role`, `content`) or ShareGPT (`from`, `value`), into turns.

Every omitted message has a note. Two turns of one side in a row are joined, because no chat template renders them faithfully.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby

from lisan.corpus.config import SourceConfig
from lisan.corpus.layouts.fields import columns_of
from lisan.corpus.sources.lines import BadRowError
from lisan.records.records import ROLES, Turn

ROLE_NAMES = {
    **{role: role for role in ROLES},
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "function_call"), "assistant"),
    **dict.fromkeys(("observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    "developer": "system",
}
MESSAGE_KEYS = frozenset({"role", "from", "content", "value", "tool_calls", "function_call", "weight", "train"})
ROLE_KEYS = frozenset({"role", "from"})
"Keys of the role. Keys outside `MESSAGE_KEYS` with a value are counted as unused."


def read_turns(messages: object, field: str, notes: list[str]) -> tuple[Turn, ...]:
    """Return the turns of a list of messages; system turns and tool results without text are left out with a note.

    A call of a tool is text of the assistant, one JSON object a line: {"name": ..., "arguments": {...}}. `weight: 0` (OpenAI)
    and `train: false` (Axolotl) mark a reply that is context and not trained.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise BadRowError(f"no list of messages in field {field}")
    turns = [_read_turn(message, field) for message in messages]
    kept = [turn for turn in turns if turn.role in ("user", "assistant") or not is_invisible(turn.content)]
    notes += ["an empty system turn or tool result left out"] * (len(turns) > len(kept))
    return join_turns(kept)


def _read_turn(message: object, field: str) -> Turn:
    if not isinstance(message, Mapping):
        raise BadRowError(f"no list of messages in field {field}: one of them is a {type(message).__name__}")
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    calls = message.get("tool_calls") or [call for call in [message.get("function_call")] if call]
    text = _join_parts(content, field) if content is not None or not calls else ""
    if not isinstance(role, str) or role not in ROLE_NAMES:
        known = ", ".join(ROLE_NAMES)
        raise BadRowError(f"a message in field {field} has the role {json.dumps(role)}; expected one of {known}")
    joined = "\n".join(part for part in (text.strip(), *map(_write_call, calls)) if part)
    return Turn(ROLE_NAMES[role], joined, is_trained=message.get("weight") != 0 and message.get("train") is not False)


def _join_parts(content: object, field: str) -> str:
    """Return the text of a message, which may come in parts of type text."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else [content]
    texts = [part["text"] for part in parts if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
    if not texts or len(texts) < len(parts):
        shown = json.dumps(content, ensure_ascii=False, default=str)[:60]
        raise BadRowError(f"a message in field {field} has no text, its content is {shown}")
    return "\n".join(texts)


def _write_call(call: object) -> str:
    """Write OpenAI's call of a tool, whose arguments are JSON in a string, as one line of JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments")
    if not isinstance(name, str):
        raise BadRowError(f"a tool call has no function name: {json.dumps(call, ensure_ascii=False, default=str)[:60]}")
    if isinstance(arguments, str):
        with suppress(ValueError):  # arguments that are not JSON stay text
            arguments = json.loads(arguments)
    return json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)


def is_invisible(text: str) -> bool:
    """Tell whether nothing of a text is visible: white space, zero-width and control characters alone."""
    return not any(char.isprintable() and not char.isspace() for char in text)


def join_turns(turns: Iterable[Turn]) -> tuple[Turn, ...]:
    """Join consecutive turns of the user or the assistant; the result is trained only if all of them are."""
    return tuple(
        turn for role, run in groupby(turns, key=lambda turn: turn.role) for turn in _join_run(role, list(run))
    )


def _join_run(role: str, run: list[Turn]) -> Iterator[Turn]:
    if role not in ("user", "assistant"):
        yield from run
    else:
        text = "\n\n".join(turn.content for turn in run if turn.content)
        yield Turn(role, text, is_trained=all(turn.is_trained for turn in run))


def begin_with_user(turns: Sequence[Turn], notes: list[str]) -> tuple[Turn, ...]:
    """Leave out the assistant's turns before the first user turn: a greeting has no prompt."""
    first = next((index for index, turn in enumerate(turns) if turn.role == "user"), len(turns))
    kept = tuple(turn for index, turn in enumerate(turns) if index > first or turn.role != "assistant")
    notes += ["a greeting before the first question left out"] * (len(kept) < len(turns))
    return kept


def add_system(turns: tuple[Turn, ...], system: str) -> tuple[Turn, ...]:
    """Put the system text of a row before its turns, unless they begin with one of their own."""
    if is_invisible(system) or (turns and turns[0].role == "system"):
        return turns
    return (Turn("system", system.strip()), *turns)


def unused_fields(row: object, source: SourceConfig) -> Iterator[str]:
    """Yield the fields of a row that hold something and that its layout does not read, those of messages as `messages[].name`."""
    if not isinstance(row, Mapping):
        return
    known = columns_of(source)
    for name in row:
        if name not in known:
            if not isinstance(row, dict) or row[name] not in (
                None,
                "",
                [],
                {},
            ):  # a parquet column is not read for this
                yield str(name)
        elif (
            isinstance(value := row[name], list | tuple)
            and value
            and isinstance(value[0], Mapping)
            and ROLE_KEYS & value[0].keys()
        ):
            keys = {key for message in value for key in message if message[key] not in (None, "", [], {})}
            yield from (f"{name}[].{key}" for key in sorted(keys - MESSAGE_KEYS))
