"""Records to examples."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from bilingual import ALL_BASES, write_base
from tiny import MAKERS, SUFFIX, conversation, document, preference, question

from lisan.core.errors import DataError
from lisan.data.examples import encode_continuation, encode_records, encode_table, encode_texts
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Turn, to_table
from lisan.tokenizer.labels import IGNORE_INDEX, Example
from lisan.tokenizer.tokenizer import load_tokenizer


def without(tokenizer: Any, *roles: str) -> Any:
    """Return a copy of the tokenizer that declares none of these roles."""
    changed = deepcopy(tokenizer)
    for role in roles:
        setattr(changed, role, None)
    return changed


def test_a_document_is_its_text_between_begin_and_end(tokenizer: Any) -> None:
    [[example]] = encode_texts(tokenizer, ["المغرب and Rabat"])
    assert example.input_ids[0] == tokenizer.bos_token_id
    assert example.input_ids[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(example.input_ids[1:-1]) == "المغرب and Rabat"


def test_everything_after_the_first_token_is_trained(tokenizer: Any) -> None:
    [[example]] = encode_texts(tokenizer, ["one two three"])
    assert example.labels[0] == IGNORE_INDEX
    assert (example.labels[1:] == example.input_ids[1:]).all()


def test_a_tokenizer_without_a_begin_mark_begins_with_the_text(tokenizer: Any) -> None:
    [[example]] = encode_texts(without(tokenizer, "bos_token"), ["one two"])
    assert tokenizer.decode(example.input_ids[:-1]) == "one two"
    assert example.labels[0] == IGNORE_INDEX


def test_special_tokens_in_a_text_do_not_end_it_twice(tokenizer: Any) -> None:
    [[empty]] = encode_texts(tokenizer, [""])
    assert empty.input_ids.tolist() == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert list(encode_texts(tokenizer, [])) == []


def test_a_tokenizer_without_an_end_mark_is_refused(tokenizer: Any) -> None:
    with pytest.raises(DataError, match="declares no eos_token"):
        list(encode_texts(without(tokenizer, "eos_token"), ["one"]))


@pytest.mark.parametrize("kind", [RecordKind.documents, RecordKind.conversations, RecordKind.preferences])
def test_a_table_is_encoded_as_its_records(kind: RecordKind, tokenizer: Any) -> None:
    maker, source = MAKERS[kind], f"ar_{SUFFIX[kind]}"
    records = [maker(source, index) for index in range(9)]
    by_table = [
        [part.labels.tolist() for part in item] for item in encode_table(tokenizer, to_table(records, kind), kind)
    ]
    assert by_table == [[part.labels.tolist() for part in item] for item in encode_records(tokenizer, records)]
    assert len(by_table) == 9


def test_a_refusal_names_the_record(tokenizer: Any) -> None:
    twice = Conversation("c-7", (Turn("user", "a"), Turn("assistant", "b"), Turn("assistant", "c")), "s", "en")
    with pytest.raises(DataError, match=r"record c-7 of s: turn 3: two assistant turns in a row"):
        list(encode_records(tokenizer, [twice]))


def test_batches_change_nothing(tokenizer: Any) -> None:
    records = [Document(str(index), f"text {index}", "s", "en") for index in range(1100)]
    together = [example.input_ids.tolist() for [example] in encode_records(tokenizer, records)]
    alone = [example.input_ids.tolist() for record in records for [example] in encode_records(tokenizer, [record])]
    assert together == alone


def test_a_conversation_is_one_example_and_a_preference_two(tokenizer: Any) -> None:
    [[_]] = encode_records(tokenizer, [conversation("en_chats", 1)])
    pair = preference("ar_pairs", 1)
    [[chosen, rejected]] = encode_records(tokenizer, [pair])
    assert pair.chosen in tokenizer.decode(chosen.input_ids)
    assert pair.rejected in tokenizer.decode(rejected.input_ids)


def test_questions_are_never_trained_on(tokenizer: Any) -> None:
    with pytest.raises(TypeError, match="Question is not trained on"):
        list(encode_records(tokenizer, [question("en_questions", 0)]))


def test_labels_are_the_ids_or_nothing(tokenizer: Any) -> None:
    items = [
        *encode_records(tokenizer, [document("ar_text", index) for index in range(9)]),
        *encode_records(tokenizer, [conversation("ar_chats", index) for index in range(9)]),
    ]
    for example in (example for item in items for example in item):
        assert isinstance(example, Example)
        assert len(example) == len(example.labels)
        assert ((example.labels == example.input_ids) | (example.labels == IGNORE_INDEX)).all()
        assert str(example.input_ids.dtype) == str(example.labels.dtype) == "int32"


def test_a_continuation_is_labelled_with_the_space_before_it(tokenizer: Any) -> None:
    example = encode_continuation(tokenizer, "Answer:", "Rabat")
    labelled = example.labels >= 0
    assert tokenizer.decode(example.input_ids[labelled]) == " Rabat"
    assert tokenizer.decode(example.input_ids[~labelled], skip_special_tokens=True) == "Answer:"
    assert example.input_ids[0] == tokenizer.bos_token_id


@pytest.mark.parametrize("base", ALL_BASES)
def test_prompt_and_continuation_have_the_ids_of_the_whole_text(base: str, tmp_path: Path) -> None:
    opened = load_tokenizer(write_base(tmp_path, ALL_BASES[base](), {"eos_token": "</s>"}))
    example = encode_continuation(opened, "Question: the city?\nAnswer:", "the river")
    whole = opened.encode("Question: the city?\nAnswer: the river", add_special_tokens=False)
    assert example.input_ids.tolist() == whole
    assert opened.decode(example.input_ids[example.labels >= 0]).strip() == "the river"
