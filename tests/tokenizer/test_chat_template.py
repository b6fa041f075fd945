"""Conversations to ids, with labels on what the assistant says."""

import json
import os
from collections.abc import Callable, Sequence
from copy import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from lisan.core.errors import DataError
from lisan.data.examples import encode_records
from lisan.records.records import Conversation, Preference, Turn
from lisan.tokenizer.chat.chat_template import (
    check_template,
    check_turns,
    encode_answer,
    encode_conversation,
    encode_prompt,
    encode_reply,
    end_of_turn_id,
    render_prompt,
    template_hash,
)
from lisan.tokenizer.chat.template_source import read_template, shipped_templates, special_tokens
from lisan.tokenizer.labels import IGNORE_INDEX, Example
from lisan.tokenizer.tokenizer import load_tokenizer

ASK, ANSWER = Turn("user", "ما هي عاصمة المغرب؟"), Turn("assistant", "Rabat.")
MORE, LAST = Turn("user", "And the river?"), Turn("assistant", "Bou Regreg.")


class Template:
    """A tokenizer whose ids are characters and whose template is what a test gives it."""

    def __init__(self, chat_template: str | None) -> None:
        self.chat_template = chat_template
        self.added_tokens_decoder: dict[int, Any] = {}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool) -> str:  # noqa: ARG002
        from jinja2 import Template as Jinja

        assert self.chat_template is not None
        return Jinja(self.chat_template).render(messages=messages, add_generation_prompt=add_generation_prompt)

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:  # noqa: ARG002
        return [ord(letter) for letter in text]

    def __call__(self, texts: list[str], **_: bool) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.encode(text, add_special_tokens=False) for text in texts]}


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


def test_a_reply_that_is_marked_as_not_trained_has_no_labels(tokenizer: Any) -> None:
    turns = (ASK, Turn("assistant", "wrong", is_trained=False), Turn("user", "?"), Turn("assistant", "right"))
    example = encode_conversation(tokenizer, turns)
    assert trained_text(tokenizer, example) == ["right<|im_end|>"]
    assert "wrong" in tokenizer.decode(example.input_ids)


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
        ((ANSWER, MORE, LAST), "turn 1: the assistant speaks first, with nothing to reply to"),
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
    assert template_hash(Template(None)) == ""


def test_templates_differ_by_what_they_do_with_white_space_system_and_tool_turns(tokenizer: Any) -> None:
    plain = "{% for m in messages %}[{{ m.role + m.content }}]{% endfor %}"
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + plain
    drops = "{% for m in messages if m.role != 'tool' %}[{{ m.role + m.content }}]{% endfor %}"
    sources = (plain, plain.replace("m.content", "m.content | trim"), refuses, drops)
    hashes = [template_hash(speaks(tokenizer, "llama2", source)) for source in (*sources, *sources)]
    assert len(set(hashes)) == len(sources)


SYSTEM, CALL, RESULT = Turn("system", "كن موجزًا."), Turn("assistant", "weather(Rabat)"), Turn("tool", '{"°C": 21}')
TALK = (ASK, ANSWER, MORE, LAST)
RENDERED = {
    "chatml": (
        "<|im_start|>user\nما هي عاصمة المغرب؟<|im_end|>\n<|im_start|>assistant\nRabat.<|im_end|>\n"
        "<|im_start|>user\nAnd the river?<|im_end|>\n<|im_start|>assistant\n",
        "<|im_start|>system\nكن موجزًا.<|im_end|>\n<|im_start|>user\nما هي عاصمة المغرب؟<|im_end|>\n<|im_start|>assistant\n",
        "Bou Regreg.<|im_end|>\n",
    ),
    "llama2": (
        "<s>[INST] ما هي عاصمة المغرب؟ [/INST] Rabat. </s><s>[INST] And the river? [/INST]",
        "<s>[INST] <<SYS>>\nكن موجزًا.\n<</SYS>>\n\nما هي عاصمة المغرب؟ [/INST]",
        " Bou Regreg. </s>",
    ),
    "llama3": (
        "<s><|start_header_id|>user<|end_header_id|>\n\nما هي عاصمة المغرب؟<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\nRabat.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nAnd the river?<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "<s><|start_header_id|>system<|end_header_id|>\n\nكن موجزًا.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nما هي عاصمة المغرب؟<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Bou Regreg.<|eot_id|>",
    ),
    "gemma2": (
        "<s><start_of_turn>user\nما هي عاصمة المغرب؟<end_of_turn>\n<start_of_turn>model\nRabat.<end_of_turn>\n"
        "<start_of_turn>user\nAnd the river?<end_of_turn>\n<start_of_turn>model\n",
        "<s><start_of_turn>user\nكن موجزًا.\n\nما هي عاصمة المغرب؟<end_of_turn>\n<start_of_turn>model\n",
        "Bou Regreg.<end_of_turn>\n",
    ),
    "mistral": (
        "<s>[INST] ما هي عاصمة المغرب؟ [/INST] Rabat.</s>[INST] And the river? [/INST]",
        "<s>[INST] كن موجزًا.\n\nما هي عاصمة المغرب؟ [/INST]",
        " Bou Regreg.</s>",
    ),
    "mistral_v3": (
        "<s>[INST] ما هي عاصمة المغرب؟[/INST] Rabat.</s>[INST] And the river?[/INST]",
        "<s>[INST] كن موجزًا.\n\nما هي عاصمة المغرب؟[/INST]",
        " Bou Regreg.</s>",
    ),
}
"By template: the prompt of the second question, that of the first under a system turn, and what the last reply adds."
END_MARKS = {
    "chatml": "<|im_end|>",
    "llama2": "</s>",
    "llama3": "<|eot_id|>",
    "gemma2": "<end_of_turn>",
    "mistral": "</s>",
    "mistral_v3": "</s>",
}


def speaks(tokenizer: Any, template: str, source: str | None = None) -> Any:
    """Return a copy of a tokenizer that begins with <s>, ends with </s> and has a template with its special tokens."""
    copy = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer._tokenizer.to_str()),
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=list(special_tokens(template)),
    )
    copy.chat_template = source or read_template(template)
    return copy


@pytest.fixture(scope="module")
def speakers(tokenizer: Any) -> dict[str, Any]:
    return {template: speaks(tokenizer, template) for template in RENDERED}


@pytest.fixture(scope="module")
def liners() -> dict[str, Any]:
    """The templates with a tokenizer that has pieces for line ends and blank lines, cut as Llama-3's cuts them."""
    cut = Regex(r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    lines = Tokenizer(models.BPE())
    lines.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(cut, "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    lines.decoder = decoders.ByteLevel()
    texts = ["user\n\nassistant\n", "a\n \n\n b.\n", "- [/INST]\n", "ما لا\n\n", "  \n"] * 9
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    lines.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    return {template: speaks(PreTrainedTokenizerFast(tokenizer_object=lines), template) for template in RENDERED}


def render_whole(tokenizer: Any, turns: Sequence[Turn]) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False)
    return text


def test_every_template_of_ours_is_tried() -> None:
    assert RENDERED.keys() == END_MARKS.keys() == shipped_templates().keys()


@pytest.mark.parametrize("template", RENDERED)
def test_a_template_renders_what_its_original_does(template: str, speakers: dict[str, Any]) -> None:
    speaker, (second, under_system, reply) = speakers[template], RENDERED[template]
    assert render_prompt(speaker, TALK[:3]) == second
    assert render_prompt(speaker, (SYSTEM, ASK)) == under_system
    assert render_whole(speaker, TALK) == second + reply


@pytest.mark.parametrize("template", RENDERED)
def test_replies_are_trained_with_their_end_mark_and_nothing_else(template: str, speakers: dict[str, Any]) -> None:
    speaker, mark = speakers[template], END_MARKS[template]
    example = encode_conversation(speaker, (SYSTEM, *TALK))
    spoken = [RENDERED[template][2].rstrip().replace(LAST.content, said.content) for said in (ANSWER, LAST)]
    assert trained_text(speaker, example) == spoken
    assert speaker.decode(example.input_ids) == render_whole(speaker, (SYSTEM, *TALK)).rstrip()
    assert end_of_turn_id(speaker) == speaker.convert_tokens_to_ids(mark) == example.input_ids[-1]


@pytest.mark.parametrize("template", RENDERED)
def test_an_answer_is_a_reply_without_the_mark_that_ends_it(template: str, speakers: dict[str, Any]) -> None:
    speaker = speakers[template]
    answer, reply = (encode(speaker, TALK[:3], LAST.content) for encode in (encode_answer, encode_reply))
    assert reply.input_ids.tolist()[: len(answer)] == answer.input_ids.tolist()
    assert [text.strip() for text in trained_text(speaker, answer)] == [LAST.content]
    assert (answer.labels == reply.labels[: len(answer)]).all()


def test_what_a_template_writes_before_an_answer_is_not_labelled() -> None:
    thinks = (
        "{% for m in messages %}<{{ m.role }}>{% if m.role == 'assistant' %}<think></think>\n{% endif %}{{ m.content }}</>\n"
        "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    example = encode_answer(Template(thinks), (ASK,), "Rabat.")
    said = "".join(chr(letter) for letter in example.input_ids[example.labels >= 0])
    assert said == "\nRabat."
    shouts = "{% for m in messages %}[{{ m.content | upper }}]{% endfor %}"
    with pytest.raises(DataError, match=r"the chat template changes the reply 'Rabat\.'"):
        encode_answer(Template(shouts), (ASK,), "Rabat.")


@pytest.mark.parametrize("template", RENDERED)
def test_a_text_begins_once(template: str, speakers: dict[str, Any]) -> None:
    """Llama-2 begins every exchange, ChatML has no begin mark, the others begin the text."""
    speaker = speakers[template]
    speaker._tokenizer.post_processor = TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", speaker.bos_token_id)]
    )
    wanted = {"chatml": 0, "llama2": 2}.get(template, 1)
    example = encode_conversation(speaker, TALK)
    assert example.input_ids.tolist().count(speaker.bos_token_id) == wanted
    assert encode_prompt(speaker, TALK[:3]).count(speaker.bos_token_id) == wanted
    assert (example.input_ids[0] == speaker.bos_token_id) == (wanted > 0)


@pytest.mark.parametrize("template", ["chatml", "llama3"])
def test_what_a_tool_says_is_context(template: str, speakers: dict[str, Any]) -> None:
    turns = (ASK, CALL, RESULT, RESULT, ANSWER)
    example = encode_conversation(speakers[template], turns)
    mark = END_MARKS[template]
    assert trained_text(speakers[template], example) == [f"{CALL.content}{mark}", f"{ANSWER.content}{mark}"]
    header = {"chatml": "<|im_start|>tool\n", "llama3": "<|start_header_id|>ipython<|end_header_id|>\n\n"}[template]
    assert speakers[template].decode(example.input_ids).count(f"{header}{RESULT.content}{mark}") == 2


@pytest.mark.parametrize("template", sorted(RENDERED.keys() - {"chatml", "llama3"}))
def test_a_template_that_cannot_say_a_turn_refuses_it(template: str, speakers: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"alternates user and assistant .* got tool as turn 4; use chatml or llama3"):
        encode_conversation(speakers[template], (SYSTEM, ASK, CALL, RESULT, ANSWER))
    with pytest.raises(DataError, match=r"got system as turn 3"):
        encode_conversation(speakers[template], (ASK, ANSWER, SYSTEM, MORE, LAST))
    with pytest.raises(DataError, match="puts the system text into a user turn, but none follows"):
        encode_conversation(speakers[template], (SYSTEM, ANSWER))


def conversations(roles: Sequence[str]) -> st.SearchStrategy[tuple[Turn, ...]]:
    """Draw one to three exchanges, under a system turn or not, of any text: marks and white space at the seams too."""
    odd = st.sampled_from(["\n", "\n\n x", " ", "", "</s>", "[INST] ", "<|im_end|>", "\u064e", "لا\n", "\r\n", "```\n"])
    said = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | odd
    content = st.builds(lambda *parts: "".join(parts), odd, said, odd)
    exchange = st.tuples(*(content.map(partial(Turn, role)) for role in roles))
    exchanges = st.lists(exchange, min_size=1, max_size=3).map(lambda parts: sum(parts, ()))
    system = st.none() | content.map(partial(Turn, "system"))
    return st.builds(lambda first, rest: (first, *rest) if first else rest, system, exchanges)


def check_every_prompt(speaker: Any, turns: tuple[Turn, ...]) -> None:
    """The law: what is trained begins with what serving would have encoded, before every reply."""
    example = encode_conversation(speaker, turns)
    trained = example.labels != IGNORE_INDEX
    assert (example.labels[trained] == example.input_ids[trained]).all()
    assert example.input_ids[-1] == end_of_turn_id(speaker)
    for index, turn in enumerate(turns):
        if turn.role == "assistant":
            prompt = encode_prompt(speaker, turns[:index])
            assert example.input_ids[: len(prompt)].tolist() == prompt
            assert trained[len(prompt)]
            assert not trained[len(prompt) - 1]


@pytest.mark.parametrize("template", RENDERED)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_an_example_begins_with_the_prompt_before_every_reply(template: str, liners: dict[str, Any], data: Any) -> None:
    tools = template in ("chatml", "llama3")
    exchange = st.sampled_from([("user", "assistant"), ("user", "assistant", "tool", "assistant")][: 1 + tools])
    check_every_prompt(liners[template], data.draw(exchange.flatmap(conversations)))


def test_the_law_is_about_something(liners: dict[str, Any]) -> None:
    """A template that does not trim a reply breaks it where a line end melts into the next, so the test above can fail."""
    source = read_template("chatml").replace("message['content'] | trim if", "message['content'] if")
    untrimmed = speaks(liners["chatml"], "chatml", source)
    turns = (ASK, Turn("assistant", "\nRabat."), MORE, LAST)
    check_every_prompt(liners["chatml"], turns)
    with pytest.raises(AssertionError):
        check_every_prompt(untrimmed, turns)
    whole, first = encode_conversation(untrimmed, turns).input_ids.tolist(), encode_prompt(untrimmed, turns[:1])
    assert whole[: len(first)] == first


def test_a_reply_of_nothing_is_its_end_mark(speakers: dict[str, Any]) -> None:
    example = encode_conversation(speakers["chatml"], (ASK, Turn("assistant", " \n")))
    assert trained_text(speakers["chatml"], example) == ["<|im_end|>"]


GENERATION = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content | trim + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_a_templates_own_generation_marks_agree_with_ours(tokenizer: Any) -> None:
    speaker = speaks(tokenizer, "chatml", GENERATION)
    check_template(speaker)
    encoded = speaker.apply_chat_template(
        [{"role": turn.role, "content": turn.content} for turn in TALK],
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    example = encode_conversation(speaker, TALK)
    size = len(example)
    assert encoded["input_ids"][:size] == example.input_ids.tolist()
    assert encoded["assistant_masks"][:size] == (example.labels != IGNORE_INDEX).astype(int).tolist()
    assert not any(encoded["assistant_masks"][size:])


@pytest.mark.parametrize(
    ("moved", "said"),
    [
        (
            ("'<|im_end|>' }}{% endgeneration %}{{ '\n' }}", "'' }}{% endgeneration %}{{ '<|im_end|>\n' }}"),
            r"marks \['b', 'd'\], but the assistant says \['b<\|im_end\|>', 'd<\|im_end\|>'\]",
        ),
        (
            ("{% generation %}{{ m.content | trim + '", "{{ m.content | trim }}{% generation %}{{ '"),
            r"marks \['<\|im_end\|>', '<\|im_end\|>'\], but the assistant says",
        ),
    ],
)
def test_generation_marks_that_disagree_are_refused(tokenizer: Any, moved: tuple[str, str], said: str) -> None:
    with pytest.raises(DataError, match=said):
        check_template(speaks(tokenizer, "chatml", GENERATION.replace(*moved)))


def test_a_template_whose_replies_nothing_ends_is_refused(tokenizer: Any) -> None:
    open_ended = speaks(
        tokenizer, "chatml", "{% for m in messages %}{{ m.role + ': ' + m.content + ' ##\n' }}{% endfor %}"
    )
    assert end_of_turn_id(open_ended) is None
    with pytest.raises(DataError, match=r"ends a reply with .*##', not with one special token .*; add the mark"):
        check_template(open_ended)


def test_chatml_without_its_special_tokens_is_refused(tokenizer: Any) -> None:
    bare = speaks(tokenizer, "llama2", read_template("llama3"))
    with pytest.raises(DataError, match=r"ends a reply with .*<\|eot_id\|>', not with one special token"):
        check_template(bare)


def test_a_refusal_names_the_record(tokenizer: Any) -> None:
    arabic = Conversation("42", (Turn("مستخدم", "سلام"), ANSWER), "chats", "ar")
    with pytest.raises(DataError, match=r"^record 42 of chats: turn 1: role must be one of .*, got 'مستخدم'; map it"):
        list(encode_records(tokenizer, [arabic]))
    twice = Preference("7", (ASK, MORE), "a", "b", "pairs", "en")
    with pytest.raises(DataError, match=r"^record 7 of pairs: turn 2: two user turns in a row"):
        list(encode_records(tokenizer, [twice]))


def original(name: str) -> str:
    """Return a published template, without the layout that its authors strip before they use it."""
    source = (Path(os.environ["LISAN_DATA"]) / "tokenizers" / "chat_templates" / f"{name}.jinja").read_text()
    return source if name.startswith("qwen") else source.replace("    ", "").replace("\n", "")


needs_data = pytest.mark.skipif("LISAN_DATA" not in os.environ, reason="LISAN_DATA names no folder of real data")


def without_begin(text: str) -> str:
    return text.removeprefix("<s>")


@needs_data
@pytest.mark.parametrize(
    ("template", "name", "accepts_system", "same"),
    [
        ("chatml", "chatml", True, without_begin),
        ("chatml", "qwen2.5-instruct", True, str),
        ("llama2", "llama-2-chat", True, str),
        ("llama3", "llama-3-instruct", True, str),
        ("gemma2", "gemma-it", True, str),
        ("mistral", "mistral-instruct", False, str),
    ],
)
def test_ours_render_what_is_published(
    template: str, name: str, accepts_system: bool, same: Callable[[str], str], speakers: dict[str, Any]
) -> None:
    theirs = copy(speakers[template])
    theirs.chat_template = original(name)
    begin = "<s>" if template == "gemma2" else ""  # left to the tokenizer in the published copy
    for turns in ((SYSTEM, *TALK), (SYSTEM, ASK), TALK, (ASK, Turn("assistant", "1\n\n2"), MORE)):
        if turns[0] is SYSTEM and not accepts_system:
            continue
        if name.startswith("qwen") and turns[0] is not SYSTEM:
            continue  # it would add a system turn of its own
        if turns[-1].role == "user":
            assert render_prompt(speakers[template], turns) == begin + same(render_prompt(theirs, turns))
        else:
            assert render_whole(speakers[template], turns) == begin + same(render_whole(theirs, turns))


@needs_data
def test_mistral_v3_renders_what_its_checkpoint_does(speakers: dict[str, Any]) -> None:
    """With a system turn it does so for one question; later ones it would rewrite, which cannot be trained."""
    folder = Path(os.environ["LISAN_DATA"]) / "tokenizers" / "mistral-7b-instruct-v0.3"
    own = load_tokenizer(folder)
    theirs = copy(speakers["mistral_v3"])
    theirs.chat_template = json.loads((folder / "tokenizer_config.json").read_text())["chat_template"]
    for turns in (TALK[:3], (SYSTEM, ASK), (ASK,)):
        assert render_prompt(speakers["mistral_v3"], turns) == render_prompt(theirs, turns)
        assert render_prompt(own, turns) == render_prompt(theirs, turns)
    assert render_whole(speakers["mistral_v3"], TALK) == render_whole(theirs, TALK)
    with pytest.raises(DataError, match="not prefix-consistent: turn 3 changes"):
        encode_conversation(theirs, (SYSTEM, *TALK))


REAL = ("gpt-neox-olmo-50k", "mistral-7b-instruct-v0.3", "openllama-3b-32k")


@needs_data
@pytest.mark.parametrize("folder", REAL)
def test_the_law_holds_with_tokenizers_of_every_family(folder: str) -> None:
    """SentencePiece marks the beginning of a text, which the start of a reply is not."""
    speaker = load_tokenizer(Path(os.environ["LISAN_DATA"]) / "tokenizers" / folder)
    turns = (SYSTEM, *TALK)
    for template, source in shipped_templates().items():
        marks = {"additional_special_tokens": list(special_tokens(template))} if special_tokens(template) else {}
        speaker.add_special_tokens({"bos_token": "<s>", "eos_token": "</s>", **marks})
        speaker.chat_template = source
        check_template(speaker)
        if (template, folder) == ("llama3", "gpt-neox-olmo-50k"):
            # `\n\n` is one token at the end of a prompt and two before a word, so that only one of two prompts can hold
            whole, first = encode_conversation(speaker, turns).input_ids.tolist(), encode_prompt(speaker, turns[:2])
            assert whole[: len(first)] == first
        else:
            check_every_prompt(speaker, turns)
