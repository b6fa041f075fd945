from collections.abc import Callable

import pytest

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.sources.read_tasks import plan_read_tasks

Write = Callable[..., str]


def test_small_files_share_a_piece_and_large_ones_are_cut(write: Write) -> None:
    for name in ("a", "b", "c"):
        write(f"{name}.jsonl", "x" * 40)
    big = write("d.jsonl", "y" * 250)
    source = SourceConfig(path=(big.replace("d.jsonl", "*.jsonl"),))
    tasks = plan_read_tasks("s", source, task_bytes=100)
    assert [[(file_range.name, file_range.start, file_range.end) for file_range in task.ranges] for task in tasks] == [
        [("a.jsonl", 0, None), ("b.jsonl", 0, None)],
        [("c.jsonl", 0, None)],
        [("d.jsonl", 0, 100)],
        [("d.jsonl", 100, 200)],
        [("d.jsonl", 200, None)],
    ]


@pytest.mark.parametrize(
    "source",
    [
        SourceConfig(format=SourceFormat.csv),
        SourceConfig(format=SourceFormat.text, unit=TextUnit.block),
        SourceConfig(format=SourceFormat.jsonl, max_records=3),
    ],
)
def test_what_cannot_be_cut_at_a_line_stays_whole(source: SourceConfig, write: Write) -> None:
    path = write("f", "z" * 500)
    config = SourceConfig(format=source.format, unit=source.unit, max_records=source.max_records, path=(path,))
    (task,) = plan_read_tasks("s", config, task_bytes=100)
    assert [(file_range.start, file_range.end) for file_range in task.ranges] == [(0, None)]


def test_names_do_not_depend_on_where_the_data_lies(write: Write) -> None:
    for place in ("here", "there/deep"):
        write(f"{place}/x/1.csv", "a")
        write(f"{place}/y/1.csv", "a")
    roots = [write(f"{place}/mark", "") for place in ("here", "there/deep")]
    names = []
    for root in roots:
        pattern = root.replace("mark", "*/1.csv")
        (task,) = plan_read_tasks("s", SourceConfig(format=SourceFormat.csv, path=(pattern,)))
        names.append([file_range.name for file_range in task.ranges])
    assert names == [["x/1.csv", "y/1.csv"]] * 2


def test_pairs_must_have_counterparts(write: Write) -> None:
    one, two = write("1.en", "a"), write("2.en", "b")
    source = SourceConfig(format=SourceFormat.aligned, path=(one, two), pair_path=(one,))
    with pytest.raises(DataError, match="path matches 2 files and pair_path 1"):
        plan_read_tasks("s", source)
