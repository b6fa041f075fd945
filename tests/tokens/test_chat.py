"""Conversations to ids, with labels on what the assistant says."""

from typing import Any

import pytest

from lisan.core.errors import DataError
from lisan.corpus.records import Turn
from lisan.tokens.chat import (
    check_turns,
    encode_conversation,
    encode_prompt,
    encode_reply,
    end_of_turn_id,
    render_prompt,
    template_hash,
)
from lisan.tokens.labels import IGNORE_INDEX, Example

ASK, ANSWER = Turn("user", "ما هي عاصمة المغرب؟"), Turn("assistant", "Rabat.")
MORE, LAST = Turn("user", "And the river?"), Turn("assistant", "Bou Regreg.")


class Template:
    """A tokenizer whose ids are characters and whose template is what a test gives it."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:  # noqa: ARG002
        from jinja2 import Template as Jinja

        assert self.chat_template is not None
        return Jinja(self.chat_template).render(messages=messages, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return [ord(letter) for letter in text]


def trained_text(tokenizer: Any, example: Example) -> list[str]:
    """Return the runs of labelled tokens as text."""
    runs: list[list[int]] = [[]]
    for token, label in zip(example.input_ids.tolist(), example.labels.tolist(), strict=True):
        if label == IGNORE_INDEX:
            runs += [[]] if runs[-1] else []
        else:
            assert token == label
            runs[-1].append(token)
    return [tokenizer.decode(run) for run in runs if run]


def test_the_prompt_ends_where_the_assistant_speaks(tokenizer: Any) -> None:
    assert render_prompt(tokenizer, [ASK]) == f"<|im_start|>user\n{ASK.content}<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(encode_prompt(tokenizer, [ASK])) == render_prompt(tokenizer, [ASK])


def test_marks_are_single_tokens(tokenizer: Any) -> None:
    ids = encode_prompt(tokenizer, [Turn("user", "")])
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in ids


def test_only_what_the_assistant_says_is_trained_with_its_end_mark(tokenizer: Any) -> None:
    example = encode_conversation(tokenizer, (ASK, ANSWER, MORE, LAST))
    assert trained_text(tokenizer, example) == ["Rabat.<|im_end|>", "Bou Regreg.<|im_end|>"]


def test_the_whole_conversation_is_there_in_order(tokenizer: Any) -> None:
    example = encode_conversation(tokenizer, (Turn("system", "Short."), ASK, ANSWER, MORE, LAST))
    text = tokenizer.decode(example.input_ids)
    assert [text.index(turn.content) for turn in (ASK, ANSWER, MORE, LAST)] == sorted(
        text.index(turn.content) for turn in (ASK, ANSWER, MORE, LAST)
    )
    assert text.startswith("<|im_start|>system\nShort.<|im_end|>\n")


def test_a_question_after_the_last_answer_is_left_out(tokenizer: Any) -> None:
    assert (
        encode_conversation(tokenizer, (ASK, ANSWER, MORE)).input_ids.tolist()
        == encode_conversation(tokenizer, (ASK, ANSWER)).input_ids.tolist()
    )


def test_of_a_preference_only_the_last_reply_is_trained(tokenizer: Any) -> None:
    example = encode_reply(tokenizer, (ASK, ANSWER, MORE), "No idea.")
    assert trained_text(tokenizer, example) == ["No idea.<|im_end|>"]


@pytest.mark.parametrize(
    ("turns", "said"),
    [
        ((Turn("bot", "x"), ANSWER), "role must be one of .*, got 'bot'"),
        ((ASK, MORE, LAST), "two user turns in a row, the second 'And the river"),
        ((ASK, ANSWER, LAST), "two assistant turns in a row"),
        ((ASK,), "without an assistant turn trains nothing"),
        ((), "without an assistant turn"),
    ],
)
def test_what_no_template_renders_faithfully_is_refused(turns: tuple[Turn, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_turns(turns)


def test_a_template_that_rewrites_earlier_turns_is_refused() -> None:
    counts = "{{ messages | length }}{% for m in messages %}[{{ m.content }}]{% endfor %}"
    with pytest.raises(DataError, match="not prefix-consistent"):
        encode_conversation(Template(counts), (ASK, ANSWER, MORE, LAST))


def test_a_tokenizer_without_a_template_is_refused_in_one_sentence() -> None:
    with pytest.raises(DataError, match=r"no chat template; make one with expand_tokenizer chat_template=chatml"):
        render_prompt(Template(None), [ASK])


def test_the_end_mark_is_what_serving_stops_at(tokenizer: Any) -> None:
    assert end_of_turn_id(tokenizer) == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert end_of_turn_id(Template(None)) is None


def test_white_space_after_the_end_mark_is_not_trained() -> None:
    template = "{% for m in messages %}<{{ m.content }}>\n\n{% endfor %}{% if add_generation_prompt %}<{% endif %}"
    example = encode_conversation(
        Template(template), (Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"), Turn("assistant", "d"))
    )
    assert "".join(map(chr, example.input_ids)) == "<a>\n\n<b>\n\n<c>\n\n<d>"
    assert [chr(label) for label in example.labels if label >= 0] == list("b>d>")


def test_the_template_is_known_by_what_it_renders(tokenizer: Any) -> None:
    same = Template("{% for m in messages %}{{ m.content }}{% endfor %}")
    spaced = Template("{%- for m in messages -%}{{- m.content -}}{%- endfor -%}")
    assert template_hash(same) == template_hash(spaced)
    assert template_hash(same) != template_hash(tokenizer)
