from pathlib import Path

import pytest

from lisan.core.parts import list_missing, part_path
from lisan.core.progress import ItemProgress
from lisan.core.storage import Location


def test_only_missing_parts_are_left_to_do(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Location(str(tmp_path))
    paths = [f"a/{part_path(0)}", f"a/{part_path(1)}", part_path(2)]
    assert list_missing(folder, paths, "scored") == [0, 1, 2]
    assert capsys.readouterr().out == ""
    (folder / paths[1]).write_bytes(b"x")
    assert list_missing(folder, paths, "scored") == [0, 2]
    assert capsys.readouterr().out == "  1 of 3 parts are scored already\n"


def test_the_last_item_is_always_reported(capsys: pytest.CaptureFixture[str]) -> None:
    logged: list[tuple[float, int]] = []
    progress = ItemProgress("scored", "rows", 3, lambda metrics, step: logged.append((metrics["scored/rows"], step)))
    progress.add()
    progress.add(2)
    assert logged == [(3.0, 3)]
    assert capsys.readouterr().out.startswith("  scored 3/3 rows, ")
