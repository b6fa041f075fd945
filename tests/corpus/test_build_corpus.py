import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Artifact
from lisan.core.errors import ArtifactError, DataError
from lisan.corpus import build_corpus as stage
from lisan.corpus.config import DedupConfig, RowLayout, SourceConfig, SourceFormat, TextUnit
from lisan.corpus.reader import list_splits, read_records
from lisan.corpus.sources import read_tasks as cutting
from lisan.microworld.config import WorldConfig
from lisan.records.kinds import RecordKind

Build = Callable[..., Artifact]
Write = Callable[..., str]


def text_source(path: str, **options: Any) -> SourceConfig:
    return SourceConfig(path=(path,), language="en", split="train", **options)


def test_counts_of_the_manifest_add_up(build: Build, write: Write) -> None:
    path = write("a.jsonl", b'{"text": "one two"}\n{"text": "One, two!"}\n{oops\n{"text": ""}\n{"text": "three"}\n')
    artifact = build({"a": text_source(path)})
    facts = artifact.facts["sources"]["a"]
    assert facts["read"] == facts["kept"] + facts["duplicates"] + facts["quarantined"] + sum(facts["dropped"].values())
    assert (facts["kept"], facts["duplicates"], facts["quarantined"], facts["dropped"]) == (2, 1, 1, {"empty text": 1})
    assert facts["splits"] == {"train": {"records": 2, "bytes": 14, "words": 3}}
    assert (artifact.facts["records"], artifact.facts["bytes"]) == (2, 14)


def test_duplicates_are_found_across_sources_and_the_longest_stays(build: Build, write: Write) -> None:
    one, two = (
        write("a.jsonl", [{"text": "same text"}, {"text": "other"}]),
        write("b.jsonl", [{"text": "Same, text."}, {"text": "b"}]),
    )
    sources = {"a": text_source(one), "b": text_source(two)}
    kept = [record.text for record in read_records(build(sources), RecordKind.documents)]
    assert kept == ["other", "Same, text.", "b"]
    kept = [
        record.text
        for record in read_records(build(sources, root="r2", dedup=DedupConfig(exact=False)), RecordKind.documents)
    ]
    assert len(kept) == 4


def test_a_source_that_changed_in_place_is_noticed(build: Build, write: Write) -> None:
    sources = {"a": text_source(write("a.jsonl", [{"text": "one"}, {"text": "two"}]))}
    assert build(sources).facts["records"] == build(sources).facts["records"] == 2
    write("a.jsonl", [{"text": "one"}, {"text": "six"}])
    with pytest.raises(ArtifactError, match=r"was made before .*a\.jsonl changed; bump the version"):
        build(sources)


def test_quarantine_names_file_line_and_reason(build: Build, write: Write) -> None:
    artifact = build({"a": text_source(write("a.jsonl", b'{"text": "x"}\n\n{"text": \n{"body": "y"}\n'))})
    faults = [
        json.loads(line) for line in (artifact.location / "quarantine/a.jsonl").read_bytes().decode().splitlines()
    ]
    assert [(Path(fault["file"]).name, fault["line"]) for fault in faults] == [("a.jsonl", 3), ("a.jsonl", 4)]
    assert faults[0]["reason"].startswith("broken JSON")
    reason = "no field text; the row has body; name it with fields={text: ...}"
    assert faults[1] == {**faults[1], "reason": reason, "text": '{"body": "y"}'}


def test_the_rest_of_a_damaged_file_is_said_and_counted(
    build: Build, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = "".join(json.dumps({"text": f"text {n} {n * n}"}) + "\n" for n in range(500))
    artifact = build({"a": text_source(write("a.jsonl", gzip.compress(rows.encode())[:-400]))})
    facts = artifact.facts["sources"]["a"]
    assert (facts["read"], facts["quarantined"], facts["damaged_files"]) == (facts["kept"] + 1, 1, 1)
    said = capsys.readouterr().out
    assert "warning: a has lost the rest of " in said
    assert "a.jsonl: the gzip data is damaged: Compressed file ended before" in said
    assert f"the {facts['kept']} lines before are read; fetch the file again" in said


def test_quarantine_keeps_what_only_looks_like_a_line_end(build: Build, write: Write) -> None:
    artifact = build({"a": text_source(write("a.jsonl", '{"text": "x"}\n{"no": "a\u2028b\u0085c"}\n'))})
    (line,) = (artifact.location / "quarantine/a.jsonl").read_bytes().splitlines()
    assert "a\u2028b\u0085c" in json.loads(line)["text"]


def test_shares_of_faults_are_of_what_was_read(build: Build, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    build({"a": text_source(write("a.jsonl", [{"text": "سلام"}] * 7 + [{"text": "x y"}] * 3))})
    assert "warning: 70% of a's documents are not in the script of en" in capsys.readouterr().out


def test_line_numbers_and_content_do_not_depend_on_how_files_are_cut(
    build: Build, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [json.dumps({"text": f"text {n % 70}"}) if n % 9 else "{broken" for n in range(200)]
    source = text_source(write("a.jsonl", "\n".join(lines)))
    whole = build({"a": source})
    monkeypatch.setattr(cutting.plan_read_tasks, "__defaults__", (300,))
    cut = build({"a": source}, root="cut")
    faults = [json.loads(line)["line"] for line in (cut.location / "quarantine/a.jsonl").read_bytes().splitlines()]
    assert faults == [n + 1 for n in range(200) if n % 9 == 0]
    assert list(read_records(cut, RecordKind.documents)) == list(read_records(whole, RecordKind.documents))
    assert whole.facts["sources"]["a"]["duplicates"] > 0


def test_the_same_config_makes_the_same_files(build: Build) -> None:
    sources = {
        "texts": SourceConfig(format=SourceFormat.microworld, world="en_articles", max_records=60),
        "chats": SourceConfig(
            format=SourceFormat.microworld, world="ar_chats", kind=RecordKind.conversations, max_records=20
        ),
    }
    world = WorldConfig(num_documents=60, num_conversations=20)
    one, two = (build(sources, root=root, microworld=world, validation_ratio=0.2) for root in ("1", "2"))
    assert one.manifest["files"] == two.manifest["files"]
    assert list_splits(one, RecordKind.documents, "texts") == ("train", "validation")
    assert one.facts["sources"]["chats"]["language"] == "ar"


def test_an_empty_source_stops_the_stage_with_its_first_fault(build: Build, write: Write, tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"sources\.a has 0 records left of 2 rows: 1 quarantined.*a\.jsonl line 2: broken JSON"
    ):
        build({"a": text_source(write("a.jsonl", '{"text": ""}\n{\n'))})
    assert not (tmp_path / "root/corpus/test/v1/manifest.json").exists()


def test_an_empty_file_is_an_empty_source(build: Build, write: Write) -> None:
    with pytest.raises(DataError, match=r"sources\.a has 0 records left of 0 rows"):
        build({"a": text_source(write("a.jsonl", ""))})


def test_a_source_that_only_repeats_others_stops_the_stage(build: Build, write: Write) -> None:
    one, two = write("a.jsonl", [{"text": "longer text!"}]), write("b.jsonl", [{"text": "longer text"}])
    with pytest.raises(DataError, match=r"sources\.b has 0 records left: each of its 1 documents is in another source"):
        build({"a": text_source(one), "b": text_source(two)})


def test_heavy_losses_are_said_aloud(build: Build, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    build({"a": text_source(write("a.jsonl", [{"text": "x"}] * 3 + [{"text": "سلام"}]))})
    said = capsys.readouterr().out
    assert "a: 4 rows, 2 documents, 0.0 MB (0 quarantined, 0 dropped, 2 duplicates)" in said
    assert "warning: 25% of a's documents are not in the script of en" in said
    assert "duplicates; look" not in said
    build({"a": text_source(write("b.jsonl", [{"text": "x"}] * 3))}, root="r2")
    assert "warning: 67% of a's documents are duplicates" in capsys.readouterr().out


def test_shards_are_bounded(build: Build, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cutting.plan_read_tasks, "__defaults__", (200,))
    monkeypatch.setattr(stage, "SHARD_BYTES", 100)
    artifact = build({"a": text_source(write("a.jsonl", [{"text": f"number {n:04d}"} for n in range(60)]))})
    assert len([path for path in artifact.manifest["files"] if "part-" in path]) > 3
    assert [record.text for record in read_records(artifact, RecordKind.documents)] == [
        f"number {n:04d}" for n in range(60)
    ]


def test_conversations_become_preferences_by_contrast(build: Build, write: Write) -> None:
    path = write("a.jsonl", [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(5)])
    source = text_source(path, layout=RowLayout.alpaca, kind=RecordKind.preferences, contrast=True)
    records = list(read_records(build({"a": source}), RecordKind.preferences))
    assert [record.chosen for record in records] == [f"a{n}" for n in range(5)]
    assert all(record.rejected != record.chosen and record.meta["rejected"] for record in records)


def test_nothing_of_the_work_is_left_in_the_artifact(build: Build, write: Write) -> None:
    artifact = build({"a": text_source(write("a.jsonl", [{"text": "x"}]))})
    assert set(artifact.manifest["files"]) == {"documents/a/train/part-00000.parquet"}
    assert not (artifact.location / "staging").exists()


def test_sources_that_read_one_file_hold_the_same_rows_out(build: Build, write: Write) -> None:
    path = write("a.jsonl", [{"instruction": f"q{n}", "output": f"a{n}"} for n in range(200)])
    chats = SourceConfig(path=(path,), language="en", layout=RowLayout.alpaca, kind=RecordKind.conversations)
    pairs = SourceConfig(
        path=(path,), language="en", layout=RowLayout.alpaca, kind=RecordKind.preferences, contrast=True
    )
    artifact = build({"chats": chats, "pairs": pairs}, validation_ratio=0.2)
    asked = [{record.turns[0].content for record in read_records(artifact, RecordKind.conversations, "validation")}]
    asked.append({record.prompt[0].content for record in read_records(artifact, RecordKind.preferences, "validation")})
    assert asked[0] == asked[1]
    assert 20 < len(asked[0]) < 60


def test_a_book_that_is_read_line_by_line_is_said(
    build: Build, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write("book.txt", "Call me what\nyou like, for all\nI care.\n")
    for unit, is_said in ((TextUnit.line, True), (TextUnit.file, False)):
        build({"book": text_source(path, format=SourceFormat.text, unit=unit)}, root=unit)
        assert ("set sources.book.unit=file" in capsys.readouterr().out) is is_said
