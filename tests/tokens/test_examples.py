"""Records to examples."""

from typing import Any

import pytest
from tiny import conversation, document, preference, question

from lisan.corpus.records import Document
from lisan.tokens.examples import encode_records, encode_texts
from lisan.tokens.labels import IGNORE_INDEX, Example


class WithoutBegin:
    """The same tokenizer without a begin mark."""

    def __init__(self, tokenizer: Any) -> None:
        self.bos_token_id, self.eos_token_id, self._tokenizer = None, tokenizer.eos_token_id, tokenizer._tokenizer


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
    [[example]] = encode_texts(WithoutBegin(tokenizer), ["one two"])
    assert tokenizer.decode(example.input_ids[:-1]) == "one two"
    assert example.labels[0] == IGNORE_INDEX


def test_special_tokens_in_a_text_do_not_end_it_twice(tokenizer: Any) -> None:
    [[empty]] = encode_texts(tokenizer, [""])
    assert empty.input_ids.tolist() == [tokenizer.bos_token_id, tokenizer.eos_token_id]
    assert list(encode_texts(tokenizer, [])) == []


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
