"""Keeps the metrics of a run beside its checkpoints and draws its page from them.

Writes `metrics.jsonl` (a header, then one line a step) and `run.html` into the checkpoint folder: both now and then and with the
last checkpoint, on a local disk each line at once. A resumed run keeps the lines up to its checkpoint and drops those of repeated
steps. Every metric also goes to the tracker.
"""

import json
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from lisan.core.artifact import METRICS, PAGE
from lisan.core.stage import Run
from lisan.core.storage import Location

REFRESH_S = 30.0
MAX_SHARE = 0.01
"Largest share of a run's time for its page: on slow storage it is written less often."

Line = dict[str, Any]


@dataclass
class RunLog:
    """Logs the first rank's metrics to files and to the tracker."""

    run: Run
    folder: Location
    header: dict[str, Any]
    "Facts of the run that are known before its first step."
    lines: list[Line] = field(default_factory=list)
    _start: float = field(default=0.0, init=False)
    _due: float = field(default=0.0, init=False)

    def open(self, first: int) -> Location:
        """Keep the lines up to step `first`, write the page and return its location."""
        before, lines = read_run_log(self.folder) if first else ({}, [])
        self.lines = [line for line in lines if line["step"] <= first]
        resumed = [step for step in before.get("resumed", []) if step < first] + [first] * bool(first)
        self.header = {**self.header, "resumed": resumed}
        self._start = time.monotonic() - (self.lines[-1]["seconds"] if self.lines else 0.0)
        self.write()
        return self.folder / PAGE

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log_metrics(metrics, step)
        if step is not None:
            self._add(step, metrics)

    def log_skip(self, step: int, reason: str) -> None:
        """Log a skipped step."""
        self._add(step, {"skipped": reason})

    def set_fact(self, name: str, value: str) -> None:
        """Change a fact of the header."""
        self.header["facts"][name] = value

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return int(self.header["num_steps"])

    def _add(self, step: int, values: Mapping[str, Any]) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **values}
        add_line(self.lines, line)
        if time.monotonic() > self._due:
            self.write()
        elif self.folder.is_local:
            # A process that dies right after its checkpoint then leaves the lines that led to it.
            with self._surviving(), open((self.folder / METRICS).full_path, "ab") as file:
                file.write(format_line(line))

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:
        self.run.log_checkpoint(step, uri, num_bytes, digest)
        if step == self.num_steps or time.monotonic() > self._due:
            self.write()

    def log_file(self, name: str, content: bytes) -> None:
        self.run.log_file(name, content)

    def log_tag(self, key: str, value: str) -> None:
        self.run.log_tag(key, value)

    def write(self) -> None:
        """Write lines and page, and set the time of the next write."""
        from lisan.train.metrics.run_page import render_run  # the loop imports no page

        begun = time.monotonic()
        with self._surviving():
            (self.folder / METRICS).write_bytes(format_lines(self.header, self.lines))
            (self.folder / PAGE).write_bytes(render_run(self.header, self.lines).encode())
        took = time.monotonic() - begun
        self._due = begun + took + max(REFRESH_S, took / MAX_SHARE)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Print storage errors instead of raising them: they do not stop training."""
        try:
            yield
        except OSError as error:
            print(f"  the run's page cannot be written to {self.folder}: {error}", flush=True)


def format_line(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def format_lines(header: Mapping[str, Any], lines: list[Line]) -> bytes:
    return b"".join(map(format_line, ({"header": header}, *lines)))


def add_line(lines: list[Line], line: Line) -> None:
    """Merge a line into the line of its step: a checkpoint in the background is logged some steps later."""
    place = bisect_left(lines, line["step"], key=itemgetter("step"))
    if place < len(lines) and lines[place]["step"] == line["step"]:
        lines[place] = {**line, **lines[place], **{name: line[name] for name in line.keys() - {"seconds"}}}
    else:
        lines.insert(place, line)


def read_run_log(folder: Location) -> tuple[dict[str, Any], list[Line]]:
    """Return the header and the lines of a run's folder; empty without a run or a header."""
    if not (folder / METRICS).exists():
        return {}, []
    first, *rest = map(_read_line, (folder / METRICS).read_bytes().split(b"\n"))
    if "header" not in first:
        return {}, []
    lines: list[Line] = []
    for line in rest:
        if "step" in line:
            add_line(lines, line)
    return first["header"], lines


def _read_line(written: bytes) -> Line:
    """Return a line; empty when its write was cut short."""
    try:
        line = json.loads(written)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def write_final_page(folder: Location, output: Location, run: Run) -> None:
    """Write the page of a finished run into the model's folder and log it with the metrics in the tracker."""
    from lisan.train.metrics.run_page import render_run

    header, lines = read_run_log(folder)
    if not header:
        print(f"  {folder / METRICS} was not written by this run; its model has no page", flush=True)
        return
    page = render_run(header, lines).encode()
    (output / PAGE).write_bytes(page)
    run.log_file(PAGE, page)
    run.log_file(METRICS, format_lines(header, lines))
