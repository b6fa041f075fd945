"""Writes an Ollama Modelfile for a GGUF file: the chat template as a Go template, sampling parameters and stop strings.

Ollama's rendering equals the Jinja template's for conversations of system, user and assistant; otherwise no TEMPLATE is written
and Ollama takes the one in the GGUF metadata. Values that a Modelfile cannot hold are refused.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import TemplateError

from lisan.core.errors import DataError
from lisan.records.records import Turn
from lisan.tokenizer.chat.chat_template import end_of_turn_id, render_prompt

MODELFILE = "Modelfile"
SAMPLING = {"temperature": "temperature", "top_k": "top_k", "top_p": "top_p", "repetition_penalty": "repeat_penalty"}
"Fields of generation_config.json and their names in a Modelfile."
ROLES = ("system", "user", "assistant")
MARKS = {role: f"the words of the {role}" for role in ROLES}
"Message contents that occur in no template and that no template trims."
CHECKS: tuple[tuple[str, ...], ...] = (
    ("user",),
    ("system", "user"),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


@dataclass(frozen=True, slots=True)
class Frame:
    """Text that a chat template puts around the messages."""

    start: str
    around: dict[str, tuple[str, str]]
    "Text before and after a message, by role."
    prompt: str
    "Generation prompt of the assistant."

    def render(self, turns: Sequence[Turn]) -> str:
        parts = (before + turn.content + after for turn in turns for before, after in [self.around[turn.role]])
        return self.start + "".join(parts) + self.prompt

    @property
    def is_code(self) -> bool:
        """Whether Go would parse a text of the frame, or its end with the `{{` of `to_go`, as the start of an action."""
        texts = [self.start, *(text for sides in self.around.values() for text in sides), self.prompt]
        return any("{{" in text or text.endswith("{") for text in texts)

    def to_go(self) -> str:
        """Return the frame as a Go template over `.Messages`."""
        cases = "".join(
            f'{{{{ {"else if" if number else "if"} eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{after}'
            for number, (role, (before, after)) in enumerate(self.around.items())
        )
        return f"{self.start}{{{{ range .Messages }}}}{cases}{{{{ end }}}}{{{{ end }}}}{self.prompt}"


def write_modelfile(tokenizer: Any, gguf_name: str, adds_bos: bool, generation: Mapping[str, Any] | None = None) -> str:
    """Return the Modelfile; `adds_bos` tells whether llama.cpp adds BOS to a text.

    `generation` is the model's generation_config.json: sampling parameters and further ids that end a reply.
    """
    generation = generation or {}
    lines = [f"FROM ./{gguf_name}"]
    frame = find_frame(tokenizer) if tokenizer.chat_template is not None else None
    if frame is not None:
        bos = str(tokenizer.bos_token or "")
        go = frame.to_go()
        template = go.removeprefix(bos) if adds_bos else go
        lines += [f"TEMPLATE {quote(template)}"] if fits(template) else []
    for token in tokenizer.convert_ids_to_tokens(_stop_ids(tokenizer, generation)):
        if not fits(token):
            raise DataError(
                f"the end of a turn is {token!r}, which no Modelfile can hold (nothing that is not printable, no line that ends "
                "in three quotes); leave gguf out of formats, or train with another template"
            )
        lines.append(f"PARAMETER stop {quote(token)}")
    return "\n".join([*lines, *_sampling(generation), ""])


def _stop_ids(tokenizer: Any, generation: Mapping[str, Any]) -> list[int]:
    """Return the distinct ids that end a reply, the template's first."""
    ends = generation.get("eos_token_id")
    ids = [end_of_turn_id(tokenizer), *(ends if isinstance(ends, list) else [ends])]
    return list(dict.fromkeys(id_ for id_ in ids if id_ is not None))


def _sampling(generation: Mapping[str, Any]) -> list[str]:
    """Return the sampling parameters under Ollama's names; a model that does not sample is greedy."""
    if not generation.get("do_sample"):
        return ["PARAMETER temperature 0"]
    given = ((ours, generation.get(theirs)) for theirs, ours in SAMPLING.items())
    return [f"PARAMETER {name} {value}" for name, value in given if value is not None]


def fits(text: str) -> bool:
    """Tell whether Ollama's parser returns a value unchanged.

    It has no escapes, drops unprintable characters, and ends a triple-quoted value at the first line that ends in quotes.
    """
    is_whole = all(char.isprintable() or char in "\t\r\n" for char in text)
    return is_whole and not re.search(r'"""[ \t]*[\r\n]', text)


def quote(text: str) -> str:
    """Return a text that `fits` as a Modelfile value, in triple quotes where needed."""
    is_bare = text == text.strip() and "\n" not in text and "\r" not in text and text[:1] not in ("", '"')
    return text if is_bare else f'"""{text}"""'


def find_frame(tokenizer: Any) -> Frame | None:
    """Return the frame of a tokenizer's chat template; None for a template that does more than frame messages."""
    user, chat, two, led = (
        _cut(tokenizer, roles)
        for roles in (("user",), ("user", "assistant"), ("user", "assistant", "user"), ("system", "user"))
    )
    if not (user and chat and two and led):
        return None
    after_user, after_assistant = user[1], chat[2]
    before_assistant = chat[1].removeprefix(after_user)
    before_user = two[2].removeprefix(after_assistant)
    start = user[0].removesuffix(before_user)
    around = {
        "system": (led[0].removeprefix(start), led[1].removesuffix(before_user)),
        "user": (before_user, after_user),
        "assistant": (before_assistant, after_assistant),
    }
    asked = render_prompt(tokenizer, [Turn("user", MARKS["user"])])
    frame = Frame(start, around, asked.removeprefix("".join([user[0], MARKS["user"], user[1]])))
    return frame if all(_holds(tokenizer, frame, roles) for roles in CHECKS) and not frame.is_code else None


def _cut(tokenizer: Any, roles: Sequence[str]) -> list[str]:
    """Return the template's texts before, between and after messages; empty when it refuses or changes messages."""
    messages = [{"role": role, "content": MARKS[role]} for role in roles]
    try:
        text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)
    except (TemplateError, TypeError, ValueError):
        return []
    parts = []
    for role in roles:
        before, mark, text = text.partition(MARKS[role])
        if not mark:
            return []
        parts.append(before)
    return [*parts, text]


def _holds(tokenizer: Any, frame: Frame, roles: Sequence[str]) -> bool:
    turns = [Turn(role, f"{number}: {MARKS[role]}") for number, role in enumerate(roles)]
    try:
        return frame.render(turns) == render_prompt(tokenizer, turns)
    except DataError:
        return False
