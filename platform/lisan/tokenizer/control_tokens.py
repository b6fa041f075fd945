"""Control tokens that a text spells: they stay text.

In: a tokenizer, and text that may spell `<|im_end|>`. Out: ids of that text in which no control token stands, or, of a rendered
chat, only those that the template wrote. Text that spells none has the very ids that the tokenizer itself gives it.

How: a copy of the tokenizer knows each control token under another name, one that begins and ends with a character that Unicode
never assigns. Tokens that a template wrote are renamed before encoding with the copy; those that a text spells are not.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

from lisan.tokenizer.tokenizer_json import Definition, open_definition

TYPED, WRITTEN = "\ufffe", "\uffff"
"Around the number of a control token that a text spells, and of one that a template wrote. Neither character is ever assigned."
UNKNOWN = "\ufffd"
SPLIT = "\u2060"
"U+2060 WORD JOINER, which shows as nothing."


class ControlTokens:
    """The control tokens of one tokenizer: the special ones, and those that the chat template writes around a turn."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.contents = tuple(sorted(_find_contents(tokenizer), key=lambda content: (-len(content), content)))
        self._numbers = {content: number for number, content in enumerate(self.contents)}
        # A pattern of nothing but an empty lookahead that fails matches nothing.
        self._pattern = re.compile("|".join(map(re.escape, self.contents)) or r"(?!)")

    def occur_in(self, text: str) -> bool:
        return self._pattern.search(text) is not None

    def guard(self, text: str) -> str:
        """Return the text with the number of a control token in place of each that it spells, for a template to render."""
        return self._number(text.replace(TYPED, UNKNOWN), TYPED)

    def encode_rendered(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts: control tokens where the template wrote them, plain text where a text spells them."""
        if not any(TYPED in text for text in texts):
            encoded = self.tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)
            ids: list[list[int]] = encoded["input_ids"]
            return ids
        named = [self._number(text.replace(WRITTEN, UNKNOWN), WRITTEN) for text in texts]
        spelt = [_TYPED.sub(lambda found: self.contents[int(found[1])], text) for text in named]
        return [encoding.ids for encoding in self._renamed.encode_batch(spelt, add_special_tokens=False)]

    def encode_texts(self, texts: list[str]) -> Iterator[list[int]]:
        """Yield the ids of texts without a template, none of them a control token."""
        backend = self.tokenizer._tokenizer
        if any(map(self.occur_in, texts)):
            backend, texts = self._renamed, [text.replace(WRITTEN, UNKNOWN) for text in texts]
        for encoding in backend.encode_batch_fast(texts, add_special_tokens=False):
            yield encoding.ids

    def split(self, text: str) -> str:
        """Return the text with an invisible character within each control token that it spells, so that an engine reads none.

        For engines that encode a rendered chat themselves.
        """
        return self._pattern.sub(lambda found: found[0][:1] + SPLIT + found[0][1:], text)

    def _number(self, text: str, edge: str) -> str:
        return self._pattern.sub(lambda found: f"{edge}{self._numbers[found[0]]}{edge}", text)

    @cached_property
    def _renamed(self) -> Any:
        definition: Definition = json.loads(self.tokenizer._tokenizer.to_str())
        return open_definition(
            _rename(definition, {content: self._number(content, WRITTEN) for content in self.contents})
        )


_TYPED = re.compile(f"{TYPED}([0-9]+){TYPED}")


def control_tokens_of(tokenizer: Any) -> ControlTokens:
    """Return the control tokens of a tokenizer and its chat template, found once."""
    return _controls_of(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _controls_of(tokenizer: Any, template: str) -> ControlTokens:  # noqa: ARG001  another template writes other tokens
    return ControlTokens(tokenizer)


def _find_contents(tokenizer: Any) -> set[str]:
    added = {token.content: token.special for token in tokenizer.added_tokens_decoder.values()}
    turn = _render_turn(tokenizer)
    return {content for content, special in added.items() if content.strip() and (special or content in turn)}


def _render_turn(tokenizer: Any) -> str:
    """Return one turn as the template writes it, "" where there is no template that does."""
    from jinja2 import TemplateError

    if tokenizer.chat_template is None:
        return ""
    try:
        turn: str = tokenizer.apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False, add_generation_prompt=False
        )
    except (TemplateError, TypeError, ValueError):  # `tokens.chat` says so when something is to be rendered
        return ""
    return turn


def _rename(definition: Definition, names: Mapping[str, str]) -> Definition:
    """Return a tokenizer that knows some of its pieces under other names, and that merges no letters into one of them."""
    model = definition["model"]
    added = [
        {**token, "content": names.get(token["content"], token["content"])} for token in definition["added_tokens"]
    ]
    pieces = model["vocab"]
    if isinstance(pieces, dict):
        model = {**model, "vocab": {names.get(piece, piece): index for piece, index in pieces.items()}}
    else:
        model = {**model, "vocab": [[names.get(piece, piece), score] for piece, score in pieces]}
    if "unk_token" in model:
        model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
    if "merges" in model:
        model["merges"] = [rule for rule in model["merges"] if _joined(rule) not in names]
    return {**definition, "added_tokens": added, "model": model, "post_processor": None}


def _joined(rule: str | Sequence[str]) -> str:
    return "".join(rule.split(" ") if isinstance(rule, str) else rule)
