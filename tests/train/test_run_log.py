"""The history of a run: what stays of it, through failures too, and its page."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from tiny import ALONE, Recorder, make_job, train_alone, train_config

from lisan.core.artifact import METRICS, PAGE, Store
from lisan.core.stage import SilentRun
from lisan.core.storage import Location
from lisan.train.metrics.run_log import RunLog, read_run_log, write_final_page
from lisan.train.metrics.run_page import PLOTS, find_series, render_run

HEADER: dict[str, Any] = {
    "title": "model/قلم@v1",
    "num_steps": 400,
    "planned": {"ar_كتب": 0.6, "en_web": 0.4, "unread": 0.0},
    "languages": {"ar_كتب": "ar", "en_web": "en", "unread": "fr"},
    "facts": {"starts from": "model/base@v1", "MFU of": "989 TFLOP/s bf16 (NVIDIA H200, dense, data sheet)"},
}


def history(folder: Path, run: Any = None) -> RunLog:
    return RunLog(run or SilentRun(), Location(str(folder)), dict(HEADER))


class Outline(HTMLParser):
    """The headings of a page, and whatever makes it reach for something else."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.headings: list[str] = []
        self.outside: list[str] = []
        self._in_heading = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_heading = tag in ("h1", "h2", "h3")
        self.outside += [f"{tag} {name}" for name, _ in attrs if name in ("src", "href")] + [tag] * (tag == "script")

    def handle_data(self, data: str) -> None:
        if self._in_heading and data.strip():
            self.headings.append(data.strip())
            self._in_heading = False


def test_what_is_logged_at_a_step_is_one_line_and_goes_on_to_the_tracker(tmp_path: Path) -> None:
    run = Recorder()
    kept = history(tmp_path, run)
    assert str(kept.open(0)) == str(tmp_path / PAGE)
    kept.log_metrics({"train/loss": 2.0}, 10)
    kept.log_metrics({"read/tokens/en_web": 7}, 10)
    kept.log_metrics({"train/loss": 1.5}, 20)
    kept.log_metrics({"seconds": 3.0})
    header, lines = read_run_log(Location(str(tmp_path)))
    assert header == {**HEADER, "resumed": []}
    assert [(line["step"], line.get("train/loss"), line.get("read/tokens/en_web")) for line in lines] == [
        (10, 2.0, 7),
        (20, 1.5, None),
    ]
    assert run.steps == {10: {"train/loss": 2.0, "read/tokens/en_web": 7}, 20: {"train/loss": 1.5}, 0: {"seconds": 3.0}}


def test_a_run_that_goes_on_keeps_what_led_to_its_checkpoint_and_nothing_after_it(tmp_path: Path) -> None:
    first = history(tmp_path)
    first.open(0)
    for step in (10, 20, 30):
        first.log_metrics({"train/loss": float(step)}, step)
    with open(tmp_path / METRICS, "ab") as file:
        file.write(b'{"step": 40, "tra')  # the process died here
    again = history(tmp_path)
    again.open(20)
    again.log_metrics({"train/loss": -30.0}, 30)
    header, lines = read_run_log(Location(str(tmp_path)))
    assert [line["train/loss"] for line in lines] == [10, 20, -30]
    assert header["resumed"] == [20]
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds)


def test_a_run_that_begins_anew_forgets_the_one_before(tmp_path: Path) -> None:
    first = history(tmp_path)
    first.open(0)
    first.log_metrics({"train/loss": 1.0}, 10)
    history(tmp_path).open(0)
    assert read_run_log(Location(str(tmp_path)))[1] == []
    assert read_run_log(Location(str(tmp_path / "nothing"))) == ({}, [])


def test_lines_that_were_not_written_whole_are_left_out(tmp_path: Path) -> None:
    kept = history(tmp_path)
    kept.open(0)
    for step in (10, 20, 30):
        kept.log_metrics({"train/loss": float(step)}, step)
    header, ten, twenty, thirty = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    place = Location(str(tmp_path))
    (tmp_path / METRICS).write_bytes(header + ten + twenty[:9] + b"\xff\n7\n" + thirty)
    assert [line["step"] for line in read_run_log(place)[1]] == [10, 30]
    for torn in (b"", header[:9] + b"\n" + ten, ten + twenty):
        (tmp_path / METRICS).write_bytes(torn)
        assert read_run_log(place) == ({}, [])


def test_the_page_is_drawn_when_it_is_due_and_with_the_last_checkpoint(tmp_path: Path) -> None:
    run = Recorder()
    kept = history(tmp_path, run)
    kept.open(0)
    (tmp_path / PAGE).unlink()
    kept.log_metrics({"train/loss": 2.0}, 200)
    kept.log_checkpoint(200, "somewhere", 10, "ab")
    assert not (tmp_path / PAGE).exists()
    kept.log_checkpoint(HEADER["num_steps"], "somewhere", 10, "ab")
    assert (tmp_path / PAGE).exists()
    assert run.checkpoints == [200, 400]


def test_a_history_that_is_lost_at_the_end_costs_the_page_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_final_page(Location(str(tmp_path)), Location(str(tmp_path / "model")), SilentRun())
    assert "its model has no page" in capsys.readouterr().out
    assert not (tmp_path / "model").exists()


def test_storage_that_is_away_is_said_and_stops_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"")
    kept = history(tmp_path / "file")
    kept.write()
    assert "the run's page cannot be written to" in capsys.readouterr().out


def lines_of(num: int) -> list[dict[str, Any]]:
    return [
        {
            "step": step,
            "seconds": 2.0 * step,
            "train/loss": 8 / step,
            "train/loss/ar_كتب": 9 / step,
            "train/language_loss/ar": 9 / step,
            "train/lr": 1e-5,
            "train/mfu_ratio": 0.4,
            "train/tokens_per_second": 12_500.0,
            "train/peak_memory_bytes": 3.2e9,
            "validation/loss": 7 / step,
            "read/tokens/ar_كتب": 6_000 * step,
            "read/tokens/en_web": 4_000 * step,
        }
        for step in range(1, num + 1)
    ]


def test_the_page_shows_what_was_logged_and_needs_nothing_from_anywhere() -> None:
    page = render_run(HEADER, lines_of(30))
    outline = Outline(page)
    assert outline.outside == []
    assert outline.headings[0] == "model/قلم@v1"
    assert {"loss", "loss by language", "loss by source", "learning rate", "memory", "planned and read"} <= set(
        outline.headings
    )
    assert not {"margin", "accuracy", "KTO's anchor", "validation by source"} & set(outline.headings)
    assert "40.0 %" in page
    assert "of 989 TFLOP/s bf16 (NVIDIA H200, dense, data sheet)" in page
    assert "3.2 GB" in page
    assert "300.0k" in page
    assert "unread" not in page


def test_a_source_has_one_colour_on_all_charts_of_the_page() -> None:
    lines = [{**line, "train/loss/en_web": 1.0, "validation/loss/en_web": 1.0} for line in lines_of(30)]
    page = render_run(HEADER, lines)
    for name, style in (
        ("ar_كتب", "--colour:var(--s0)"),
        ("en_web", "--colour:var(--s1)"),
        ("ar", "--colour:var(--s3)"),
    ):
        assert set(re.findall(rf'style="([^"]*)"><(?:title|bdi)>{name}<', page)) == {style}
    assert "Pale: planned, the share of the whole run's rows" in page


def test_sources_of_the_validation_rows_alone_are_drawn() -> None:
    lines = [{"step": step, "validation/loss/held_out": 2.0, "validation/loss/other": 3.0} for step in (1, 2)]
    page = render_run(HEADER, lines)
    assert "held_out" in page
    assert "other" in page


def test_the_page_of_a_run_without_a_step_says_so() -> None:
    assert "Nothing is logged yet." in render_run(HEADER, [])


def test_names_cannot_break_out_of_the_page() -> None:
    lines = [{"step": 1, "seconds": 1.0, "train/loss": 1.0, "train/loss/<script>x": 1.0, "skipped": "<script>y"}]
    assert "<script>" not in render_run({**HEADER, "title": "<script>z"}, lines)


def test_series_have_names_that_people_read() -> None:
    [plot] = [plot for plot in PLOTS if plot.title == "memory"]
    line = {"step": 3, "train/memory_bytes": 1e9, "train/peak_memory_bytes": 2e9}
    assert find_series(plot, [line]) == {"memory": [(3, 1.0)], "peak memory": [(3, 2.0)]}


def test_a_run_tells_of_itself_beside_its_checkpoints(tiny_store: Store, tmp_path: Path) -> None:
    config = train_config(tiny_store)
    job = make_job(tiny_store, config, tmp_path)
    train_alone(tiny_store, config, tmp_path)
    header, lines = read_run_log(job.checkpoints)
    assert [line["step"] for line in lines] == list(range(1, 7))
    assert header["title"] == "model/test@v1"
    assert sum(header["planned"].values()) == pytest.approx(1)
    assert re.search(r"TFLOP/s fp32 measured by a \d+ x \d+ x \d+ matmul", header["facts"]["MFU of"])
    assert Outline((tmp_path / "checkpoints" / PAGE).read_text()).headings[0] == "model/test@v1"


def test_the_history_of_a_run_that_died_is_that_of_one_that_did_not(tiny_store: Store, tmp_path: Path) -> None:
    def die(metrics: Any, checkpoint: str | None) -> None:
        if checkpoint:
            raise KeyboardInterrupt

    config = train_config(tiny_store)
    train_alone(tiny_store, config, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train_alone(tiny_store, config, tmp_path / "parts", replace(ALONE, report=die))
    train_alone(tiny_store, config, tmp_path / "parts")
    whole, parts = (read_run_log(Location(str(tmp_path / name / "checkpoints"))) for name in ("whole", "parts"))
    assert (whole[0]["resumed"], parts[0]["resumed"]) == ([], [3])
    for key in ("step", "train/loss", "train/loss/ar_text", "train/lr", "read/tokens/ar_text"):
        assert [line.get(key) for line in whole[1]] == [line.get(key) for line in parts[1]]
