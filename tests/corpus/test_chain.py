from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lisan.core.errors import ConfigError
from lisan.core.storage import Location
from lisan.corpus.chain import replace_texts, run_read_task, split_of, texts_of
from lisan.corpus.config import CorpusConfig, NormaliseConfig, RowLayout, SourceConfig, SourceFormat
from lisan.corpus.sources.read_tasks import plan_read_tasks
from lisan.records.kinds import RecordKind
from lisan.records.records import Conversation, Document, Preference, Question, Record, Turn

Write = Callable[..., str]
RECORDS: list[Record] = [
    Document("1", "t", "s", "en"),
    Conversation("2", (Turn("user", "a"), Turn("assistant", "b")), "s", "en"),
    Preference("3", (Turn("user", "a"),), "c", "r", "s", "en"),
    Question("4", "q", ("x", "y"), 1, "s", "en"),
]


def config(source: SourceConfig, **options: Any) -> CorpusConfig:
    return CorpusConfig(name="test", sources={"s": source}, **options)


def read(source: SourceConfig, folder: Path, **options: Any) -> dict[str, Any]:
    (task,) = plan_read_tasks("s", source)
    return run_read_task(task, config(source, **options), Location(str(folder / "staging")))


@pytest.mark.parametrize("record", RECORDS)
def test_every_text_of_a_record_can_be_taken_out_and_put_back(record: Record) -> None:
    changed = replace_texts(record, [f"{text}!" for text in texts_of(record)])
    assert texts_of(changed) == [f"{text}!" for text in texts_of(record)]
    assert replace_texts(changed, texts_of(record)) == record


def test_every_row_is_kept_dropped_or_quarantined(write: Write, tmp_path: Path) -> None:
    path = write(
        "f.jsonl", b'{"text": "a b"}\n{"text": ""}\n{"no": 1}\n{broken\n{"text": "\\u200b"}\n{"text": "c\\u0640"}\n'
    )
    facts = read(SourceConfig(path=(path,), language="en"), tmp_path)
    assert (facts["read"], facts["records"], facts["quarantined"]) == (6, 2, 2)
    assert facts["dropped"] == {"empty text": 1, "empty after normalisation": 1}
    faults = (tmp_path / "staging/s/00000.faults.jsonl").read_text().splitlines()
    assert ['"line": 3' in faults[0], '"line": 4' in faults[1]] == [True, True]


def test_changed_and_mislabelled_documents_are_counted(write: Write, tmp_path: Path) -> None:
    path = write("f.jsonl", [{"text": "كتـــاب"}, {"text": "كتاب"}, {"text": "book"}])
    facts = read(SourceConfig(path=(path,), language="ar"), tmp_path)
    assert (facts["changed"], facts["flagged"]) == (1, 1)


def test_normalisation_can_be_off(write: Write, tmp_path: Path) -> None:
    path = write("f.jsonl", [{"text": "كتـــاب"}])
    facts = read(SourceConfig(path=(path,), language="ar"), tmp_path, normalise=NormaliseConfig(enabled=False))
    assert facts["bytes"] == len("كتـــاب".encode())
    assert "changed" not in facts


def test_reading_stops_after_max_records(write: Write, tmp_path: Path) -> None:
    path = write("f.jsonl", [{"text": f"n {n}"} for n in range(9)])
    assert read(SourceConfig(path=(path,), language="en", max_records=4), tmp_path)["records"] == 4
    world = SourceConfig(format=SourceFormat.microworld, world="en_chats", kind=RecordKind.conversations, max_records=5)
    assert read(world, tmp_path)["records"] == 5


def test_the_held_out_share_is_drawn_by_id() -> None:
    source = SourceConfig(language="en")
    setup = config(source, validation_ratio=0.1)
    splits = [split_of(Document(f"{n}", "t", "s", "en"), source, setup) for n in range(3000)]
    assert 0.08 < splits.count("validation") / 3000 < 0.12
    assert set(splits) == {"train", "validation"}
    assert splits == [split_of(Document(f"{n}", "u", "s", "en"), source, setup) for n in range(3000)]


def test_both_directions_of_a_pair_are_in_one_split() -> None:
    source = SourceConfig(language="en", pair_language="ar", layout=RowLayout.parallel)
    setup = config(source, validation_ratio=0.5)
    for n in range(50):
        sides = [Document(f"{n}{side}", "t", "s", "en-ar", {"pair": f"{n}"}) for side in "ab"]
        assert len({split_of(side, source, setup) for side in sides}) == 1


def test_a_source_may_put_all_its_records_in_one_split_and_questions_are_held_out() -> None:
    setup = config(SourceConfig())
    assert split_of(RECORDS[0], SourceConfig(split="train"), setup) == "train"
    assert split_of(RECORDS[3], SourceConfig(kind=RecordKind.questions), setup) == "validation"


def test_the_validation_ratio_is_below_one() -> None:
    with pytest.raises(ConfigError, match="validation_ratio must be in"):
        config(SourceConfig(), validation_ratio=1.0)


def test_a_parquet_column_that_no_layout_reads_costs_nothing_and_is_said(tmp_path: Path) -> None:
    far = pa.array([10**7, 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"text": ["one", "two"], "date": far}), tmp_path / "f.parquet")
    source = SourceConfig(format=SourceFormat.parquet, path=(str(tmp_path / "f.parquet"),), language="en")
    facts = read(source, tmp_path)
    assert (facts["records"], facts["unused"], facts["faults"]) == (2, {"date": 2}, [])
    facts = read(replace(source, fields={"text": "date"}), tmp_path)
    assert facts["quarantined"] == 2
    assert facts["faults"][0]["reason"].startswith("column date cannot be read: ")


@pytest.mark.parametrize("language", ["fa-IR", "pes_Arab"])
def test_persian_in_a_pair_keeps_its_joiners(language: str, write: Write, tmp_path: Path) -> None:
    path = write("f.jsonl", [{"first": "I want", "second": "می\u200cخواهم"}])
    source = SourceConfig(path=(path,), layout=RowLayout.parallel, language="en", pair_language=language)
    read(source, tmp_path)
    texts = pq.read_table(tmp_path / "staging/s/00000.parquet")["text"].to_pylist()
    assert ["می\u200cخواهم" in text for text in texts] == [True, True]
