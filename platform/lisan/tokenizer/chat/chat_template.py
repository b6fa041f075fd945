"""One chat template renders training examples, evaluation prompts and the requests of the endpoint.

In: turns and a tokenizer that carries its Jinja template. Out: text, or token ids with the assistant's part marked.
Always: the ids of a training example begin with exactly the ids of the prompt that serving renders, whichever of its
replies is asked for. A control token that a turn spells is encoded as plain text (vocabulary/control.py). Where a text begins
is the template's to say: it writes `bos_token` where its original does, and nothing here adds one.

One case cannot have it both ways: a token that ends a prompt when it stands alone and another when the reply is known, as
`\n\n` of the llama3 template under GPT-2's pre-tokenizer, or a reply whose white space a template does not trim. Then each
reply follows the end of its own prompt as served, and only the context of later replies differs, by that token.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain, groupby, pairwise
from typing import Any

import numpy as np
from jinja2 import TemplateError

from lisan.core.errors import DataError
from lisan.records.records import ROLES, Turn
from lisan.tokenizer.control_tokens import control_tokens_of
from lisan.tokenizer.labels import IGNORE_INDEX, Example

Passage = tuple[str, bool]
"A part of the rendered conversation, and whether the assistant says it."
PROBE = (Turn("user", " a "), Turn("assistant", " b "), Turn("user", "c"), Turn("assistant", "d"))
"Shows how a template treats white space, an earlier reply and the last one."


def render_prompt(tokenizer: Any, turns: Sequence[Turn]) -> str:
    """Render turns up to where the assistant speaks next, as the endpoint does."""
    return _render(tokenizer, turns, add_generation_prompt=True)


def encode_prompt(tokenizer: Any, turns: Sequence[Turn]) -> list[int]:
    return _encode(tokenizer, render_prompt(tokenizer, guard_turns(tokenizer, turns)))


def encode_conversation(tokenizer: Any, turns: Sequence[Turn]) -> Example:
    """Encode a conversation with labels on the replies of the assistant and their end marks."""
    check_turns(turns)
    return _join(tokenizer, _split_passages(tokenizer, guard_turns(tokenizer, turns)))


def encode_reply(tokenizer: Any, prompt: Sequence[Turn], reply: str) -> Example:
    """Encode a prompt and one reply with labels on that reply only; earlier replies are context."""
    turns = (*prompt, Turn("assistant", reply))
    check_turns(turns)
    passages = _split_passages(tokenizer, guard_turns(tokenizer, turns))
    last = max(index for index, (_, is_trained) in enumerate(passages) if is_trained)
    return _join(tokenizer, [(text, is_trained and index == last) for index, (text, is_trained) in enumerate(passages)])


def encode_answer(tokenizer: Any, prompt: Sequence[Turn], answer: str) -> Example:
    """Encode a prompt and a reply up to the end of its text, with labels on that text: the mark that ends a reply is left out.

    Text that the template writes before the reply, such as an empty thought, belongs to the prompt.
    """
    turns = guard_turns(tokenizer, (*prompt, Turn("assistant", answer)))
    check_turns(turns)
    *before, (spoken, _) = _split_passages(tokenizer, turns)
    guarded = turns[-1].content.strip()
    start = spoken.rfind(guarded)
    if start < 0:
        raise DataError(
            f"the chat template changes the reply {answer[:40]!r}; its log-probability cannot be told apart"
        )
    lead = spoken[:start].rstrip()
    text = spoken[len(lead) : start + len(guarded)]
    return _join(tokenizer, [*((part, False) for part, _ in before), *([(lead, False)] if lead else []), (text, True)])


def check_turns(turns: Sequence[Turn]) -> None:
    """Refuse turns that no template renders faithfully: unknown roles, two turns of one side in a row, nothing to train on."""
    previous = ""
    for number, turn in enumerate(turns, 1):
        if turn.role not in ROLES:
            raise DataError(
                f"turn {number}: role must be one of {', '.join(ROLES)}, got {turn.role!r}; map it when the corpus is built"
            )
        if turn.role == previous and turn.role in ("user", "assistant"):
            raise DataError(
                f"turn {number}: two {turn.role} turns in a row, the second {turn.content[:40]!r}; join them or drop one"
            )
        if turn.role == "assistant" and not previous:
            raise DataError("turn 1: the assistant speaks first, with nothing to reply to; drop that turn")
        previous = turn.role
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError("a conversation without an assistant turn trains nothing; drop it")


def check_template(tokenizer: Any) -> None:
    """Refuse a template that cannot be trained on: no reply of it could be stopped, or it marks replies differently."""
    _check_template(tokenizer, str(tokenizer.chat_template))


@lru_cache(maxsize=4)
def _check_template(tokenizer: Any, source: str) -> None:
    """Do it once for a tokenizer and its template."""
    passages = _split_passages(tokenizer, PROBE)
    if end_of_turn_id(tokenizer) is None:
        raise DataError(
            f"the chat template ends a reply with {passages[-1][0][-20:]!r}, not with one special token of the tokenizer, so "
            "that nothing stops the endpoint; add the mark to special_tokens of expand_tokenizer, or end with eos_token"
        )
    if re.search(r"\{%[-+]?\s*generation\b", source):
        marked = list(_generation_marks(tokenizer))
        ours = [text.strip() for text, is_trained in passages if is_trained]
        if marked != ours:
            raise DataError(
                f"{{% generation %}} of the chat template marks {marked}, but the assistant says {ours}; "
                "put it around the reply and its end mark, or leave it out"
            )


def _generation_marks(tokenizer: Any) -> Iterator[str]:
    """Yield the spans of the probe inside a template's own `{% generation %}` marks, without surrounding white space."""
    encoded = tokenizer.apply_chat_template(_messages(PROBE), return_dict=True, return_assistant_tokens_mask=True)
    tokens = zip(encoded["input_ids"], encoded["assistant_masks"], strict=True)
    for is_marked, run in groupby(tokens, key=lambda token: bool(token[1])):
        if is_marked:
            yield tokenizer.decode([index for index, _ in run]).strip()


def end_of_turn_id(tokenizer: Any) -> int | None:
    """Return the id that ends a reply of the assistant, at which serving must stop.

    None without a template, and for one that ends a reply with ordinary pieces: stopping there would cut other text.
    """
    if tokenizer.chat_template is None:
        return None
    text = _render(tokenizer, PROBE, add_generation_prompt=False).rstrip()
    last = _encode(tokenizer, text)[-1]
    return last if last in tokenizer.added_tokens_decoder else None


def template_hash(tokenizer: Any) -> str:
    """Hash the rendered text of fixed conversations, "" without a template: the text matters, not the Jinja source."""
    if tokenizer.chat_template is None:
        return ""
    fixed = (PROBE[:3], (Turn("system", "s"), *PROBE[:3]), (*PROBE[:2], Turn("tool", "t")))
    texts = [text for turns in fixed for text in _render_or_refuse(tokenizer, turns)]
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()


def _render_or_refuse(tokenizer: Any, turns: Sequence[Turn]) -> tuple[str, str]:
    try:
        return render_prompt(tokenizer, turns), _render(tokenizer, turns, add_generation_prompt=False)
    except DataError:
        return "", ""


def _split_passages(tokenizer: Any, turns: Sequence[Turn]) -> list[Passage]:
    """Cut the rendered conversation where the assistant starts and stops speaking."""
    passages: list[Passage] = []
    done = ""
    for index, turn in enumerate(turns):
        if turn.role != "assistant":
            continue
        prompt = _render(tokenizer, turns[:index], add_generation_prompt=True)
        whole = _render(tokenizer, turns[: index + 1], add_generation_prompt=False)
        if not (prompt.startswith(done) and whole.startswith(prompt)):
            raise DataError(
                f"the chat template is not prefix-consistent: turn {index + 1} changes the text before it; "
                "choose another with chat_template of expand_tokenizer"
            )
        spoken = whole[len(prompt) :].rstrip()
        passages += [(prompt[len(done) :], False), (spoken, turn.is_trained)]
        done = prompt + spoken
    return passages


def _join(tokenizer: Any, passages: Sequence[Passage]) -> Example:
    """Encode passages so that no token spans a seam: generation starts from the encoded prompt."""
    texts = [text for text, _ in passages]
    *pieces, whole = control_tokens_of(tokenizer).encode_rendered([*texts, "".join(texts)])
    if list(chain.from_iterable(pieces)) != whole:
        pieces = _encode_in_context(tokenizer, texts)
    ids: list[int] = []
    labels: list[int] = []
    for piece, (_, is_trained) in zip(pieces, passages, strict=True):
        ids += piece
        labels += piece if is_trained else [IGNORE_INDEX] * len(piece)
    return Example(np.array(ids, np.int32), np.array(labels, np.int32))


def _encode_in_context(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Encode each text as it is after the one before: SentencePiece marks the beginning of a text, and a seam is none."""
    pieces = [_encode(tokenizer, texts[0])]
    for before, text in pairwise(texts):
        start, both = _encode(tokenizer, before), _encode(tokenizer, before + text)
        pieces.append(both[len(start) :] if both[: len(start)] == start else _encode(tokenizer, text))
    return pieces


def _encode(tokenizer: Any, text: str) -> list[int]:
    return control_tokens_of(tokenizer).encode_rendered([text])[0]


def guard_turns(tokenizer: Any, turns: Sequence[Turn]) -> Sequence[Turn]:
    """Mark the control tokens that the turns spell: only those of the template become ids of their own."""
    controls = control_tokens_of(tokenizer)
    if not any(controls.occur_in(turn.content) for turn in turns):
        return turns
    return tuple(replace(turn, content=controls.guard(turn.content)) for turn in turns)


def _messages(turns: Sequence[Turn]) -> list[dict[str, str]]:
    return [{"role": turn.role, "content": turn.content} for turn in turns]


def _render(tokenizer: Any, turns: Sequence[Turn], add_generation_prompt: bool) -> str:
    if tokenizer.chat_template is None:
        raise DataError("the tokenizer has no chat template; make one with expand_tokenizer chat_template=chatml")
    try:
        text: str = tokenizer.apply_chat_template(
            _messages(turns), tokenize=False, add_generation_prompt=add_generation_prompt
        )
    except (TemplateError, TypeError, ValueError) as error:
        raise DataError(f"the chat template does not render this conversation: {error}") from error
    return text
