"""The Jinja source of a chat template: one of ours, a file of one's own, or the base tokenizer's.

In: what `chat_template` says. Out: the source, and the special tokens that it is written with. Always: what is no
template, or no Jinja, is a ConfigError before anything is read or written. `vocabulary/expand.py` puts the source beside
the tokenizer; `tokens/chat.py` renders it.

Ours begin with a comment that lists their special tokens, and so may a file: `{#- special tokens: <|a|> <|b|> -#}`.
What begins a text and ends it is not listed: a template writes `bos_token` and `eos_token` for it.
"""

import re
from importlib import resources
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from lisan.core.errors import ConfigError

BASE = "base"
"The base tokenizer's own template."
SUFFIX = ".jinja"
_SPECIAL = re.compile(r"\{#-?\s*special tokens:\s*(.*?)\s*-?#\}", re.DOTALL)


def shipped_templates() -> dict[str, str]:
    """Return the source of every template of ours by name."""
    files = (resources.files(__package__) / "templates").iterdir()
    return {file.name.removesuffix(SUFFIX): file.read_text(encoding="utf-8") for file in files}


def read_template(name: str, base_template: object = None) -> str:
    """Return the source of a shipped template, of the file at path `name`, or `base_template` for `base`.

    Raises ConfigError for an unknown name, a file that is not a Jinja template, and a base without one template (transformers
    gives a dict for several).
    """
    shipped = shipped_templates()
    if name in shipped:
        return shipped[name]
    if name.endswith(SUFFIX):
        return _read_file(name)
    known = ", ".join(sorted(shipped))
    if name != BASE:
        raise ConfigError(f"chat_template must be one of {known}, {BASE} or a path/to/file{SUFFIX}, got {name!r}")
    if not isinstance(base_template, str):
        raise ConfigError(f"chat_template={BASE} needs a base with one chat template of its own; set one of {known}")
    return base_template


def special_tokens(name: str) -> tuple[str, ...]:
    """Return the special tokens that a template is written with; the base's own are in the base already."""
    if name == BASE:
        return ()
    listed = _SPECIAL.search(read_template(name))
    return tuple(listed[1].split()) if listed else ()


def _read_file(name: str) -> str:
    path = Path(name).expanduser()
    if not path.is_file():
        raise ConfigError(f"chat_template {name} is no file; give the path of a Jinja template")
    try:
        text = path.read_text(encoding="utf-8")
        Environment(extensions=["jinja2.ext.loopcontrols", _Generation]).parse(text)
    except (UnicodeDecodeError, TemplateSyntaxError) as error:
        where = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
        raise ConfigError(f"chat_template {name}{where} is no Jinja template ({error}); correct it") from error
    return text


class _Generation(Extension):
    """`{% generation %}` of transformers, of which only the grammar is needed here."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)
