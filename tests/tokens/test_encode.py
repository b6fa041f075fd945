"""The stage that turns a corpus into packed rows, in this process."""

from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny import CONTEXT, document, encode

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.corpus.records import RecordKind
from lisan.tokens.encode import EncodeConfig, tokenizer_hash
from lisan.tokens.packing import Overflow, PackingConfig
from lisan.tokens.rows import RowReader


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    for name in ("corpus", "tokenizer"):
        copytree(Path(tiny_store.root.root) / name, tmp_path / name)
    return Store(str(tmp_path))


def documents_of(tokens: Artifact, tokenizer: Any) -> list[str]:
    """Return the text of every document of every row."""
    reader = RowReader(tokens)
    rows = reader.read(range(len(reader)))
    texts = []
    for ids, lens in zip(rows.input_ids, rows.doc_lens, strict=True):
        start = 0
        for size in lens:
            texts.append(tokenizer.decode(ids[start : start + size], skip_special_tokens=True))
            start += size
    return texts


def test_every_document_is_in_the_rows_once(store: Store, tokenizer: Any) -> None:
    tokens = encode(store, RecordKind.documents, context_length=128)
    expected = sorted(document(source, index).text for source in ("ar_text", "en_text") for index in range(80))
    assert sorted(documents_of(tokens, tokenizer)) == expected


def test_the_facts_are_what_is_in_the_files(store: Store, tokenizer: Any) -> None:
    tokens = encode(store, RecordKind.documents)
    facts, reader = tokens.facts, RowReader(tokens)
    rows = reader.read(range(len(reader)))
    assert facts["rows"] == len(reader) == sum(facts["sources"][source]["rows"] for source in ("ar_text", "en_text"))
    assert facts["tokens"] == sum(map(sum, rows.doc_lens))
    assert facts["targets"] == int((rows.labels >= 0).sum())
    assert facts["padding_ratio"] == pytest.approx(1 - facts["tokens"] / (len(reader) * CONTEXT), abs=1e-5)
    assert facts["vocabulary_size"] == len(tokenizer)
    assert facts["sources"]["ar_text"]["language"] == "ar"


def test_sources_and_split_are_chosen(store: Store, tokenizer: Any) -> None:
    tokens = encode(store, RecordKind.documents, sources=("en_text",), split="validation", context_length=128)
    assert list(tokens.facts["sources"]) == ["en_text"]
    assert sorted(documents_of(tokens, tokenizer)) == sorted(
        document("en_text", index).text for index in range(80, 100)
    )


def test_preferences_lie_in_a_row_as_chosen_and_rejected(store: Store) -> None:
    reader = RowReader(encode(store, RecordKind.preferences))
    assert all(len(lens) % 2 == 0 for lens in reader.read(range(len(reader))).doc_lens)


def test_what_is_too_long_is_dropped_and_counted(store: Store) -> None:
    whole = encode(store, RecordKind.conversations, context_length=256)
    short = encode(store, RecordKind.conversations, context_length=40, version="v2")
    assert whole.facts["sources"]["en_chats"]["dropped"] == 0
    dropped = sum(source["dropped"] for source in short.facts["sources"].values())
    assert dropped > 0
    kept, known = (sum(source["documents"] for source in tokens.facts["sources"].values()) for tokens in (short, whole))
    assert kept + dropped == known == 160


def test_the_tokenizer_is_known_by_its_hash(store: Store) -> None:
    tokenizer = store.open(Ref.parse("tokenizer/tiny@v1"))
    tokens = encode(store, RecordKind.documents)
    assert tokens.facts["tokenizer_hash"] == tokenizer_hash(tokenizer.location.full_path) == tokenizer.facts["hash"]


def test_a_folder_is_a_tokenizer_as_well_as_a_reference(store: Store) -> None:
    folder = store.open(Ref.parse("tokenizer/tiny@v1")).location.full_path
    by_folder = encode(store, RecordKind.documents, tokenizer=folder)
    assert by_folder.manifest["parents"].keys() == {"corpus/tiny@v1"}
    assert by_folder.manifest["files"] == encode(store, RecordKind.documents, version="v2").manifest["files"]


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"sources": ("fr_text",)}, (DataError, KeyError), "fr_text"),
        ({"split": "test"}, DataError, "no split test of documents/ar_text; splits: train, validation"),
        ({"tokenizer": "tokenizer/none@v1"}, Exception, "tokenizer/none@v1 does not exist"),
        ({"corpus": "corpus/none@v1"}, Exception, "corpus/none@v1 does not exist"),
    ],
)
def test_what_is_not_there_is_refused(changes: dict[str, Any], error: Any, said: str, store: Store) -> None:
    with pytest.raises(error, match=said):
        encode(store, RecordKind.documents, **changes)
    assert not (Path(store.root.root) / "tokens" / "documents" / "v1" / "manifest.json").exists()


def test_rows_too_short_for_every_record_are_refused(store: Store) -> None:
    with pytest.raises(DataError, match=r"gives no rows for ar_chats .* longer than context_length=8"):
        encode(store, RecordKind.conversations, context_length=8)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"context_length": 7}, "context_length must be >= 8, got 7"),
        ({"kind": RecordKind.questions}, "kind=questions is for evaluation"),
        (
            {"kind": RecordKind.preferences, "packing": PackingConfig(overflow=Overflow.split)},
            r"cuts a preferences record in two",
        ),
    ],
)
def test_an_impossible_config_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncodeConfig(name="t", corpus="corpus/c@v1", tokenizer="tokenizer/t@v1", **values)
