from collections.abc import Callable

import pytest

from lisan.core.artifact import Artifact
from lisan.core.errors import DataError
from lisan.corpus.config import RowLayout, SourceConfig
from lisan.corpus.reader import list_sources, list_splits, read_records, read_table, read_tables, shard_paths
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS, Conversation, Turn, from_table

DOCUMENTS, CONVERSATIONS = RecordKind.documents, RecordKind.conversations


@pytest.fixture
def corpus(build: Callable[..., Artifact], write: Callable[..., str]) -> Artifact:
    one = write("1.jsonl", [{"text": f"one {n}"} for n in range(1500)])
    two = write("2.jsonl", [{"text": "نص"}])
    chat = write("3.jsonl", [{"instruction": "q", "output": "a"}])
    return build(
        {
            "en": SourceConfig(path=(one,), language="en", split="train"),
            "ar": SourceConfig(path=(two,), language="ar", split="validation"),
            "chat": SourceConfig(
                path=(chat,), language="en", split="train", layout=RowLayout.alpaca, kind=CONVERSATIONS
            ),
        }
    )


def test_sources_are_listed_by_kind_with_their_language(corpus: Artifact) -> None:
    assert list_sources(corpus, DOCUMENTS) == {"ar": "ar", "en": "en"}
    assert list_sources(corpus, RecordKind.questions) == {}
    assert list_splits(corpus, DOCUMENTS, "ar") == ("validation",)


def test_records_come_back_in_the_order_of_their_source(corpus: Artifact) -> None:
    assert [record.text for record in read_records(corpus, DOCUMENTS)] == [f"one {n}" for n in range(1500)]
    (chat,) = read_records(corpus, CONVERSATIONS, sources=["chat"])
    assert isinstance(chat, Conversation)
    assert chat.turns == (Turn("user", "q"), Turn("assistant", "a"))


def test_all_sources_of_a_split_are_read_when_none_is_named(corpus: Artifact) -> None:
    assert [record.source for record in read_records(corpus, DOCUMENTS, "validation")] == ["ar"]


def test_tables_are_batches_in_the_schema_of_the_kind(corpus: Artifact) -> None:
    tables = list(read_tables(corpus, DOCUMENTS))
    assert [table.num_rows for table in tables] == [1024, 476]
    assert tables[0].schema.equals(SCHEMAS[DOCUMENTS])


def test_a_shard_can_be_read_by_its_path(corpus: Artifact) -> None:
    (path,) = shard_paths(corpus, DOCUMENTS, "en", "train")
    assert path == "documents/en/train/part-00000.parquet"
    table = read_table(corpus.location, path)
    assert from_table(table, DOCUMENTS) == list(read_records(corpus, DOCUMENTS))


def test_what_the_corpus_does_not_have_is_refused_with_what_it_has(corpus: Artifact) -> None:
    with pytest.raises(DataError, match=r"corpus/test@v1 has no source fr of documents; sources: ar, en"):
        list(read_records(corpus, DOCUMENTS, sources=["fr"]))
    with pytest.raises(DataError, match=r"has no split train of documents/ar; splits: validation"):
        list(read_records(corpus, DOCUMENTS, sources=["en", "ar"]))
    with pytest.raises(DataError, match=r"has no documents in split test; splits: train, validation"):
        list(read_records(corpus, DOCUMENTS, "test"))
    with pytest.raises(DataError, match="has no source chat of documents"):
        shard_paths(corpus, DOCUMENTS, "chat", "train")
