import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig
from lisan.corpus.sources.files import describe_folders, find_files, shared_folder
from lisan.corpus.sources.read_tasks import plan_read_tasks

Write = Callable[..., str]


@pytest.mark.parametrize(
    "name", ["web[1].jsonl", "epoch=3.jsonl", "a#b.jsonl", "نص عربي.jsonl", "what?.jsonl", "a*b/c.jsonl"]
)
@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_file_of_the_very_name_is_taken_before_patterns(name: str, scheme: str, write: Write) -> None:
    path = scheme + write(name, "x")
    write("web1.jsonl", "x")
    assert find_files("k", (path,), "jsonl") == [path]
    (task,) = plan_read_tasks("s", SourceConfig(path=(path,)))
    assert [file_range.path for file_range in task.ranges] == [path]


def test_the_users_folder_is_a_tilde(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write("f.jsonl", "x")
    monkeypatch.setenv("HOME", os.path.dirname(path))
    assert find_files("k", ("~/f.jsonl", "~/*.jsonl"), "jsonl") == [path]


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_folder_is_its_files_of_the_format(scheme: str, write: Write, tmp_path: Path) -> None:
    wanted = [write(f"d/{name}", "x") for name in ("a.jsonl", "b.JSONL.gz", "deep/c.ndjson.zst")]
    for name in ("README.md", "_SUCCESS", ".hidden.jsonl", "deep/.git/x.jsonl"):
        write(f"d/{name}", "x")
    folder = f"{scheme}{tmp_path}/d"
    assert find_files("k", (folder,), "jsonl") == [f"{scheme}{path}" for path in wanted]
    assert shared_folder((folder,)) == f"{tmp_path}/d"
    (sentence,) = describe_folders((folder, wanted[0]), "jsonl")
    assert sentence == f"3 files of format jsonl in {folder}; 1 others left out: README.md"
    with pytest.raises(
        DataError, match=r"sources.s.path: the folder .*/d has no .csv for format=csv, it has README.md, a.jsonl"
    ):
        find_files("sources.s.path", (folder,), "csv")


def test_a_pattern_without_a_file_names_its_key_and_what_is_there(write: Write, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"sources\.s\.path: no file matches /nowhere/\*\.txt; .* ~sources\.s"):
        find_files("sources.s.path", ("/nowhere/*.txt",), "text")
    write("here.txt", "x")
    with pytest.raises(
        DataError, match=rf"no file matches {tmp_path}/there.txt \({tmp_path} has here.txt\); correct it"
    ):
        find_files("sources.s.path", (f"{tmp_path}/there.txt",), "text")


def test_a_name_that_is_not_utf8_is_a_sentence(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jsonl")).write_text("x")
    with pytest.raises(
        DataError, match=r"sources.s.path: the name of the file b'.*caf\\xe9.jsonl' is not UTF-8; rename it"
    ):
        find_files("sources.s.path", (str(tmp_path),), "jsonl")


def test_files_are_listed_once_each_patterns_by_name(write: Write, tmp_path: Path) -> None:
    paths = [write(f"{name}.txt", "x") for name in "bca"]
    assert find_files("k", (paths[0], f"{tmp_path}/*.txt"), "text") == [paths[0], paths[2], paths[1]]
