"""Records to examples: token ids with a label for every token that is trained.

In: texts, conversations, preferences. Out: items of one or two `Example`s that must share a row. Always: a label equals
the id at its own position or is IGNORE_INDEX; the loss does the shifting; the first token of a document has no label.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from typing import Any, cast

import numpy as np
import pyarrow as pa

from lisan.core.errors import DataError
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Preference, Record, from_table
from lisan.tokenizer.chat.chat_template import check_template, encode_conversation, encode_reply
from lisan.tokenizer.control_tokens import control_tokens_of
from lisan.tokenizer.labels import IGNORE_INDEX, Example, Item

BATCH_TEXTS = 64
"Of documents that are tokenised at once: few enough for their ids to stay in the cache of a core."


def encode_table(tokenizer: Any, table: pa.Table, kind: RecordKind) -> Iterator[Item]:
    """Encode the records of a table; of documents the column `text` alone, without making a record of each."""
    if kind is RecordKind.documents:
        return encode_texts(tokenizer, table["text"].to_pylist())
    return encode_records(tokenizer, from_table(table, kind))


def encode_records(tokenizer: Any, records: Iterable[Record]) -> Iterator[Item]:
    """Encode records, documents in batches."""
    for kind, some in groupby(records, type):
        if kind is Document:
            yield from encode_texts(tokenizer, (cast(Document, record).text for record in some))
        else:
            yield from (_encode_turns(tokenizer, record) for record in some)


def _encode_turns(tokenizer: Any, record: Record) -> Item:
    """Encode a conversation; a refusal names the record."""
    if not isinstance(record, Conversation | Preference):
        raise TypeError(f"{type(record).__name__} is not trained on")
    check_template(tokenizer)
    try:
        if isinstance(record, Conversation):
            return (encode_conversation(tokenizer, record.turns),)
        return tuple(encode_reply(tokenizer, record.prompt, reply) for reply in (record.chosen, record.rejected))
    except DataError as error:
        raise DataError(f"record {record.id} of {record.source}: {error}") from error


def count_spelt_controls(tokenizer: Any, records: Iterable[Record]) -> int:
    """Count the records that spell a control token of the tokenizer in their text."""
    controls = control_tokens_of(tokenizer)
    return sum(any(map(controls.occur_in, texts_of(record))) for record in records)


def texts_of(record: Record) -> list[str]:
    """Return all that is said in a record."""
    match record:
        case Document():
            return [record.text]
        case Conversation():
            return [turn.content for turn in record.turns]
        case Preference():
            return [*(turn.content for turn in record.prompt), record.chosen, record.rejected]
    return [record.question, *record.choices]


def count_spelt_controls_in(tokenizer: Any, table: pa.Table, kind: RecordKind) -> int:
    """Count them in a table; of documents the column `text` alone is read."""
    if kind is RecordKind.documents:
        return sum(map(control_tokens_of(tokenizer).occur_in, table["text"].to_pylist()))
    return count_spelt_controls(tokenizer, from_table(table, kind))


def encode_texts(tokenizer: Any, texts: Iterable[str]) -> Iterator[Item]:
    """Encode documents: begin mark (where the tokenizer has one), text, end mark; everything after the first is trained."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if end is None:
        raise DataError(
            "the tokenizer declares no eos_token to end a document with; add one to its tokenizer_config.json"
        )
    waiting = iter(texts)
    while batch := list(islice(waiting, BATCH_TEXTS)):
        for pieces in control_tokens_of(tokenizer).encode_texts(batch):
            pieces.append(end)
            if begin is not None:
                pieces.insert(0, begin)
            ids = np.array(pieces, np.int32)
            labels = ids.copy()
            labels[0] = IGNORE_INDEX
            yield (Example(ids, labels),)


def encode_continuation(tokenizer: Any, prompt: str, text: str) -> Example:
    """Encode `prompt + " " + text` after the begin mark, with labels on what comes after the prompt.

    The whole is encoded at once: a SentencePiece tokenizer puts a space piece before each text that is encoded alone. A token
    that holds the end of the prompt and the beginning of the text is labelled too.
    """
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    before, whole = control_tokens_of(tokenizer).encode_texts([prompt, f"{prompt} {text}"])
    pairs = enumerate(zip(before, whole, strict=False))
    num_shared = next((place for place, (alone, inside) in pairs if alone != inside), len(before))
    ids = np.array(begin + whole, np.int32)
    labels = ids.copy()
    labels[: len(begin) + num_shared] = IGNORE_INDEX
    return Example(ids, labels)
