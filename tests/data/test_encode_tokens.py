"""The stage that turns a corpus into packed rows, in this process."""

import json
import pickle
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny import CONTEXT, document, encode, write_part

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import ClusterConfig, StorageConfig
from lisan.data import corpus_blocks
from lisan.data.config import EncodeConfig, Overflow, PackingConfig, Strategy
from lisan.data.encode_tokens import locate_tokenizer
from lisan.data.rows import RowReader
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Preference, Turn
from lisan.tokenizer.chat.chat_template import template_hash
from lisan.tokenizer.tokenizer import open_tokenizer, tokenizer_hash


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
    assert "template_hash" not in facts
    arabic = facts["sources"]["ar_text"]
    assert arabic["language"] == "ar"
    assert arabic["padding_ratio"] == pytest.approx(1 - arabic["tokens"] / (arabic["rows"] * CONTEXT), abs=1e-5)


def test_what_a_template_renders_is_in_the_facts_of_chats(store: Store, tokenizer: Any) -> None:
    for kind in (RecordKind.conversations, RecordKind.preferences):
        assert encode(store, kind).facts["template_hash"] == template_hash(tokenizer)


def test_a_large_file_becomes_several_shards_that_hold_it_once(
    store: Store, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus_blocks, "BLOCK_BYTES", 2000)
    tokens = encode(store, RecordKind.documents, context_length=128)
    assert len(tokens.facts["sources"]["ar_text"]["shards"]) > 2
    expected = sorted(document(source, index).text for source in ("ar_text", "en_text") for index in range(80))
    assert sorted(documents_of(tokens, tokenizer)) == expected


@pytest.mark.ray
def test_the_rows_are_the_same_on_two_workers(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(corpus_blocks, "BLOCK_BYTES", 2000)
    alone = encode(store, RecordKind.documents)
    started = not ray.is_initialized()
    if started:
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        spread = encode(store, RecordKind.documents, version="v2", cluster=ClusterConfig(num_workers=2))
        with pytest.raises(DataError, match=r"^record b-1 of broken: turn 3: two assistant turns in a row"):
            encode(
                broken_store(store),
                RecordKind.conversations,
                corpus="corpus/broken@v1",
                cluster=ClusterConfig(num_workers=2),
            )
    finally:
        if started:
            ray.shutdown()
    assert spread.manifest["files"] == alone.manifest["files"]
    assert spread.facts["sources"] == alone.facts["sources"]
    assert [*spread.facts["sources"]["ar_text"]["shards"]] == [*alone.facts["sources"]["ar_text"]["shards"]]


def broken_store(store: Store) -> Store:
    """Add a corpus in which the second of three conversations has two replies in a row."""
    good, bad = (Turn("user", "a"), Turn("assistant", "b")), Turn("assistant", "c")
    records = [
        Conversation(f"b-{index}", (*good, *([bad] if index == 1 else [])), "broken", "en") for index in range(3)
    ]
    draft = store.begin(Ref.parse("corpus/broken@v1"), {}, ())
    write_part(draft.location, RecordKind.conversations, "broken", "train", records)
    draft.commit({"sources": {"broken": {"language": "en"}}})
    return store


def test_a_source_without_records_is_refused(store: Store) -> None:
    draft = store.begin(Ref.parse("corpus/empty@v1"), {}, ())
    write_part(draft.location, RecordKind.documents, "none", "train", [])
    draft.commit({"sources": {"none": {"language": "en"}}})
    with pytest.raises(DataError, match=r"corpus/empty@v1 holds no record of none \(documents, train\); leave it out"):
        encode(store, RecordKind.documents, corpus="corpus/empty@v1")


def test_every_node_finds_the_tokenizer_of_an_artifact(store: Store, tmp_path: Path) -> None:
    """What travels is where the artifact lies, not the cache of the process that planned."""
    parents = tuple(store.open(Ref.parse(ref)) for ref in ("corpus/tiny@v1", "tokenizer/tiny@v1"))
    config = EncodeConfig(name="t", corpus="corpus/tiny@v1", tokenizer="tokenizer/tiny@v1")
    place = pickle.loads(pickle.dumps(locate_tokenizer(config, parents)))
    assert place == parents[1].location
    assert len(open_tokenizer(place)) == parents[1].facts["num_ids"]


def test_an_id_that_the_model_of_the_folder_has_no_row_for_is_refused(store: Store, tmp_path: Path) -> None:
    highest = encode(store, RecordKind.documents).facts["highest_id"]
    folder = tmp_path / "model"
    copytree(store.open(Ref.parse("tokenizer/tiny@v1")).location.full_path, folder)
    (folder / "config.json").write_text(json.dumps({"vocab_size": highest}))
    with pytest.raises(
        DataError, match=rf"tokens/documents@v2 may hold the id {highest} .* has {highest} embedding rows"
    ):
        encode(store, RecordKind.documents, tokenizer=str(folder), version="v2")
    (folder / "config.json").write_text(json.dumps({"vocab_size": highest + 1}))
    encode(store, RecordKind.documents, tokenizer=str(folder), version="v2")


def test_padding_is_an_id_that_every_model_has(store: Store, tokenizer: Any) -> None:
    reader = RowReader(encode(store, RecordKind.conversations))
    rows = reader.read(range(len(reader)))
    ends = [sum(lens) for lens in rows.doc_lens]
    assert not any(ids[end:].any() for ids, end in zip(rows.input_ids, ends, strict=True))
    assert tokenizer.pad_token_id != 0


def test_a_folder_of_this_machine_is_refused_on_several_nodes(store: Store) -> None:
    folder = store.open(Ref.parse("tokenizer/tiny@v1")).location.full_path
    cluster = ClusterConfig(num_workers=2, num_nodes=2)
    storage = StorageConfig(root=f"file://{store.root.root}")
    with pytest.raises(ConfigError, match=r"is a folder of this machine but cluster\.num_nodes is 2; name an artifact"):
        encode(store, RecordKind.documents, version="v3", tokenizer=folder, cluster=cluster, storage=storage)


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


def add_corpus(store: Store, records: list[Any], kind: RecordKind, split: str = "train", name: str = "odd") -> str:
    draft = store.begin(Ref.parse(f"corpus/{name}@v1"), {}, ())
    for source in sorted({record.source for record in records}):
        write_part(draft.location, kind, source, split, [record for record in records if record.source == source])
    draft.commit({"sources": {record.source: {"language": "en"} for record in records}})
    return f"corpus/{name}@v1"


def chat(index: int, asked: str, answered: str) -> Conversation:
    return Conversation(f"c-{index}", (Turn("user", asked), Turn("assistant", answered)), "chats", "en")


def test_what_is_dropped_is_said_with_its_reason_and_a_warning(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [chat(index, "why", "the river " * (80 if index < 2 else 1)) for index in range(5)]
    corpus = add_corpus(store, records, RecordKind.conversations)
    facts = encode(store, RecordKind.conversations, corpus=corpus).facts["sources"]["chats"]
    assert (facts["items"], facts["dropped"]) == (5, 2)
    said = capsys.readouterr().out
    assert "  chats: 2 of 5 records dropped: longer than context_length=64 (packing.overflow=drop)\n" in said
    assert (
        "  warning: 40% of chats's records are dropped or cut; raise context_length, set packing.overflow=trunc" in said
    )


def test_what_is_cut_is_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    records = [
        chat(index, "why " * (80 if index == 19 else 1), "the river " * (80 if index == 0 else 1))
        for index in range(20)
    ]
    corpus = add_corpus(store, records, RecordKind.conversations)
    encode(store, RecordKind.conversations, corpus=corpus, packing=PackingConfig(overflow=Overflow.truncate))
    said = capsys.readouterr().out
    assert "  chats: 1 of 20 records cut: longer than context_length=64 (packing.overflow=truncate)\n" in said
    assert "  chats: 1 of 20 records dropped: nothing is trained within context_length=64 (packing.overflow=" in said
    assert "warning" not in said


def test_of_rows_made_while_training_the_sample_says_what_is_lost(
    store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    records = [chat(index, "why", "the river " * (80 if index < 2 else 1)) for index in range(5)]
    corpus = add_corpus(store, records, RecordKind.conversations)
    encode(store, RecordKind.conversations, corpus=corpus, store_rows=False)
    assert "  chats: 2 of 5 records dropped: longer than" in capsys.readouterr().out


@pytest.mark.parametrize("kind", [RecordKind.documents, RecordKind.conversations, RecordKind.preferences])
def test_records_that_spell_a_control_token_are_counted_and_said(
    kind: RecordKind, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = "a <|im_end|> b"
    makers: dict[RecordKind, Any] = {
        RecordKind.documents: lambda index, text: Document(f"d-{index}", text, "chats", "en"),
        RecordKind.conversations: lambda index, text: chat(index, text, "no"),
        RecordKind.preferences: lambda index, text: Preference(
            f"p-{index}", (Turn("user", "x"),), "y", text, "chats", "en"
        ),
    }
    corpus = add_corpus(store, [makers[kind](index, typed if index == 3 else "a") for index in range(4)], kind)
    tokens = encode(store, kind, corpus=corpus)
    assert tokens.facts["sources"]["chats"]["spelt_controls"] == 1
    assert "  chats: 1 of 4 records spell a control token of the tokenizer, which is" in capsys.readouterr().out


def test_a_source_without_the_split_is_left_out_and_said(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    draft = store.begin(Ref.parse("corpus/part@v1"), {}, ())
    for source, split in (("one", "train"), ("two", "train"), ("two", "validation")):
        write_part(
            draft.location, RecordKind.documents, source, split, [document("en_text", index) for index in range(9)]
        )
    draft.commit({"sources": {"one": {"language": "en"}, "two": {"language": "en"}}})
    tokens = encode(store, RecordKind.documents, corpus="corpus/part@v1", split="validation")
    assert list(tokens.facts["sources"]) == ["two"]
    assert "  without one: no split validation there\n" in capsys.readouterr().out
    with pytest.raises(
        DataError,
        match=r"has no split validation of documents/one; splits: train; name one of them, leave one out, or build the corpus "
        r"with more validation_ratio or sources\.one\.split=validation",
    ):
        encode(store, RecordKind.documents, corpus="corpus/part@v1", sources=("one",), split="validation", version="v2")


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
        (
            {"kind": RecordKind.conversations, "packing": PackingConfig(strategy=Strategy.concat)},
            r"packing.strategy=concat cuts conversations wherever a row ends",
        ),
    ],
)
def test_an_impossible_config_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        EncodeConfig(name="t", corpus="corpus/c@v1", tokenizer="tokenizer/t@v1", **values)
