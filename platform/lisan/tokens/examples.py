"""Records to examples: token ids with a label for every token that is trained.

In: texts, conversations, preferences. Out: items of one or two `Example`s that must share a row. Always: a label equals
the id at its own position or is IGNORE_INDEX; the loss does the shifting; the first token of a document has no label.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from lisan.corpus.records import Conversation, Document, Preference, Record
from lisan.tokens.chat import encode_conversation, encode_reply
from lisan.tokens.labels import IGNORE_INDEX, Example, Item


def encode_records(tokenizer: Any, records: Iterable[Record]) -> Iterator[Item]:
    """Encode records of one kind, documents in batches."""
    texts: list[str] = []
    for record in records:
        match record:
            case Document():
                texts.append(record.text)
                if len(texts) == 512:
                    yield from encode_texts(tokenizer, texts)
                    texts = []
            case Conversation():
                yield (encode_conversation(tokenizer, record.turns),)
            case Preference():
                yield (
                    encode_reply(tokenizer, record.prompt, record.chosen),
                    encode_reply(tokenizer, record.prompt, record.rejected),
                )
            case _:
                raise TypeError(f"{type(record).__name__} is not trained on")
    yield from encode_texts(tokenizer, texts)


def encode_texts(tokenizer: Any, texts: list[str]) -> Iterator[Item]:
    """Encode documents: begin mark (where the tokenizer has one), text, end mark; everything after the first is trained."""
    if not texts:
        return
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    for encoding in tokenizer._tokenizer.encode_batch_fast(texts, add_special_tokens=False):
        ids = np.array([*begin, *encoding.ids, tokenizer.eos_token_id], np.int32)
        labels = ids.copy()
        labels[0] = IGNORE_INDEX
        yield (Example(ids, labels),)
