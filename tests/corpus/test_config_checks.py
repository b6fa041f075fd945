import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Store
from lisan.core.errors import ConfigError, DataError
from lisan.corpus.config import CorpusConfig, RowLayout, SourceConfig, SourceFormat
from lisan.corpus.config_checks import check
from lisan.records.kinds import RecordKind


def look(folder: Path, name: str = "s", **options: Any) -> None:
    source = SourceConfig(**{"path": (str(folder / "f.jsonl"),), "language": "en", **options})
    check(CorpusConfig(name="test", sources={name: source}), Store(str(folder)))


@pytest.fixture
def folder(tmp_path: Path, write: Callable[..., str]) -> Path:
    write("f.jsonl", '{"text": "a"}\n')
    return tmp_path


def test_a_sound_config_passes(folder: Path) -> None:
    look(folder)
    look(folder, format=SourceFormat.microworld, world="en_chats", kind=RecordKind.conversations, path=(), language="")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"name": "a/b"}, "sources.a/b must be named"),
        ({"path": ()}, "sources.s.path must be set with format=jsonl"),
        ({"language": ""}, "sources.s.language must be set"),
        ({"columns": ("a",)}, "sources.s.columns has no effect with format=jsonl"),
        ({"world": "en_chats"}, "sources.s.world has no effect"),
        ({"format": SourceFormat.aligned}, "sources.s.pair_path must be set"),
        ({"format": SourceFormat.microworld, "path": (), "world": "x"}, "sources.s.world must be one of .*en_articles"),
        ({"max_records": 0}, "sources.s.max_records must be at least 1"),
        ({"split": "Train set"}, "sources.s.split must be"),
        ({"encoding": "arabic-1"}, "sources.s.encoding 'arabic-1' is unknown"),
        ({"encoding": "utf-16"}, "sources.s.encoding utf-16 is not read line by line"),
        ({"pair_language": "ar"}, "sources.s.pair_language goes with layout=parallel"),
        ({"layout": RowLayout.alpaca}, "sources.s.kind must be conversations with these options, got documents"),
        ({"contrast": True}, "sources.s.contrast needs a layout that makes conversations"),
        (
            {"contrast": True, "layout": RowLayout.alpaca, "kind": RecordKind.conversations},
            "sources.s.kind must be preferences",
        ),
    ],
)
def test_an_impossible_source_is_one_sentence(options: dict[str, Any], sentence: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        look(folder, **options)


def test_a_corpus_needs_sources(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sources is empty"):
        check(CorpusConfig(name="test", sources={}), Store(str(tmp_path)))


def test_missing_files_and_encodings_are_found_before_anything_is_read(folder: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.s\.path: no file matches"):
        look(folder, path=("/nowhere",))
    (folder / "g.jsonl").write_bytes(b"\xc7\xe1\xd3\n" * 5)
    with pytest.raises(DataError, match="is not utf-8: byte 0"):
        look(folder, path=(str(folder / "g.jsonl"),))


def test_rows_that_are_all_of_another_shape_are_found_before_anything_is_read(folder: Path) -> None:
    (folder / "g.jsonl").write_text('{"body": "a", "url": "b"}\n' * 300)
    with pytest.raises(
        DataError,
        match=r"sources.s: none of the first 100 rows can be used; .*g.jsonl line 1: no field text; the row has body, url; ",
    ):
        look(folder, path=(str(folder / "g.jsonl"),))
    (folder / "h.jsonl").write_text('{"body": "a"}\n' * 99 + '{"text": "a"}\n')
    look(folder, path=(str(folder / "h.jsonl"),))


def test_a_first_line_of_data_is_no_header(folder: Path) -> None:
    (folder / "g.csv").write_text("hello there,1\nand again,2\n")
    with pytest.raises(
        DataError, match=r"the row has hello there, 1; .*; the first line is taken for column names: if it is data"
    ):
        look(folder, path=(str(folder / "g.csv"),), format=SourceFormat.csv)


def test_an_array_read_line_by_line_names_its_format(folder: Path) -> None:
    (folder / "g.jsonl").write_text('[{"text": "a"}, {"text": "b"}]')
    with pytest.raises(
        DataError, match=r"g.jsonl line 1: expected an object .*, got list; the file is one JSON array: set format=json"
    ):
        look(folder, path=(str(folder / "g.jsonl"),))


def test_one_damaged_file_among_good_ones_is_left_to_the_counts(folder: Path) -> None:
    (folder / "e.jsonl").write_bytes(gzip.compress(b'{"text": "a"}\n')[:-12])
    look(folder, path=(str(folder),))
    with pytest.raises(DataError, match=r"none of the first 1 rows can be used; .*the gzip data is damaged"):
        look(folder, path=(str(folder / "e.jsonl"),))


def test_the_faults_of_all_sources_are_said_at_once(folder: Path) -> None:
    sources = {
        "good": SourceConfig(path=(str(folder / "f.jsonl"),), language="en"),
        "gone": SourceConfig(path=("/nowhere",), language="en"),
        "wrong": SourceConfig(path=(str(folder / "f.jsonl"),), language="en", fields={"text": "body"}),
        "nameless": SourceConfig(path=(str(folder / "f.jsonl"),)),
    }
    with pytest.raises(DataError) as caught:
        check(CorpusConfig(name="test", sources=sources), Store(str(folder)))
    first, *faults = str(caught.value).splitlines()
    assert first == "3 of 4 sources cannot be read:"
    assert [fault.split(":")[0].strip() for fault in faults] == [
        "sources.gone.path",
        "sources.wrong",
        "sources.nameless.language must be set",
    ]
