"""One chat template renders training examples, evaluation prompts and what the endpoint serves.

In: turns and a tokenizer that carries its Jinja template. Out: text, or token ids with the assistant's part marked.
Always: the ids of a training example begin with exactly the ids of the prompt that serving renders.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from lisan.core.errors import DataError
from lisan.corpus.records import ROLES, Turn
from lisan.tokens.labels import IGNORE_INDEX, Example


def render_prompt(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """Render turns up to where the assistant speaks next, as the endpoint does."""
    return _render(tokenizer, turns, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    ids: list[int] = tokenizer.encode(render_prompt(tokenizer, turns), add_special_tokens=False)
    return ids


def encode_conversation(tokenizer: Any, turns: Sequence[Turn]) -> Example:
    """Encode a conversation with labels on what the assistant says, its end mark included."""
    check_turns(turns)
    return _join(tokenizer, _segments(tokenizer, turns))


def encode_reply(tokenizer: Any, prompt: Sequence[Turn], reply: str) -> Example:
    """Encode a prompt and one reply with labels on that reply only; earlier replies are context."""
    turns = (*prompt, Turn("assistant", reply))
    check_turns(turns)
    segments = _segments(tokenizer, turns)
    last = max(index for index, (_, is_trained) in enumerate(segments) if is_trained)
    return _join(tokenizer, [(text, is_trained and index == last) for index, (text, is_trained) in enumerate(segments)])


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse what no template renders faithfully: unknown roles, two turns of one side in a row, nothing to train on."""
    previous = ""
    for turn in turns:
        if turn.role not in ROLES:
            raise DataError(
                f"role must be one of {', '.join(ROLES)}, got {turn.role!r}; map it when the corpus is built"
            )
        if turn.role == previous and turn.role in ("user", "assistant"):
            raise DataError(f"two {turn.role} turns in a row, the second {turn.content[:40]!r}; join them or drop one")
        previous = turn.role
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError("a conversation without an assistant turn trains nothing")


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Return the id that ends what the assistant says, which serving must stop at; None without a template."""
    if tokenizer.chat_template is None:
        return None
    example = encode_conversation(tokenizer, (Turn("user", "a"), Turn("assistant", "b")))
    return int(example.input_ids[-1])


def template_hash(tokenizer: Any) -> str:
    """Hash what the template renders for a fixed conversation: what matters is the text, not the Jinja source."""
    turns = (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    return hashlib.sha256(render_prompt(tokenizer, turns).encode()).hexdigest()


def _segments(tokenizer: Any, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """Cut the rendered conversation where the assistant starts and stops speaking."""
    segments: list[tuple[str, bool]] = []
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = _render(tokenizer, turns[:index], add_generation_prompt=True)
        whole = _render(tokenizer, turns[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise DataError(
                "the chat template is not prefix-consistent: a later turn changes how an earlier one is rendered"
            )
        spoken = whole[len(prompt) :].rstrip()
        segments += [(prompt[len(done) :], False), (spoken, True)]
        done = prompt + spoken
    return segments


def _join(tokenizer: Any, segments: list[tuple[str, bool]]) -> Example:
    """Encode segment by segment: generation starts from the encoded prompt, so a token never spans the seam."""
    ids: list[int] = []
    labels: list[int] = []
    for text, is_trained in segments:
        piece = tokenizer.encode(text, add_special_tokens=False)
        ids += piece
        labels += piece if is_trained else [IGNORE_INDEX] * len(piece)
    return Example(np.array(ids, np.int32), np.array(labels, np.int32))


def _render(tokenizer: Any, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template; make one with expand_tokenizer chat_template=chatml")
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=add_generation_prompt)
    return text
