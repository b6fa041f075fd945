"""The history of a run, kept where its checkpoints are, and the page that is drawn from it.

In: what the first rank logs. Out: `metrics.jsonl` (a header, then what was logged, by step) and `run.html` beside the
checkpoints, both written again now and then and with the last checkpoint; on a local disk each line as it comes.
Always: a run that goes on from a checkpoint keeps the lines up to its step and drops those of steps that are done again;
the tracker is told everything that is written here, and may be elsewhere or away.
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
from lisan.train.metrics.run_page import render_run

REFRESH_S = 30.0
MAX_SHARE = 0.01
"Of the time of a run that may go into its page: where storage is slow, it is written less often."

Line = dict[str, Any]


@dataclass
class History:
    """A run that remembers what it is told by step, and passes it on."""

    run: Run
    place: Location
    header: dict[str, Any]
    "What the page says of the run before its first step."
    lines: list[Line] = field(default_factory=list)
    _start: float = field(default=0.0, init=False)
    _due: float = field(default=0.0, init=False)

    def open(self, first: int) -> Location:
        """Go on from the lines before step `first`, write the page and return where it is."""
        before, lines = read_history(self.place) if first else ({}, [])
        self.lines = [line for line in lines if line["step"] <= first]
        # A run that is resumed was begun on machines of its own, maybe others.
        resumed = [step for step in before.get("resumed", []) if step < first] + [first] * bool(first)
        self.header = {**self.header, "resumed": resumed}
        self._start = time.monotonic() - (self.lines[-1]["seconds"] if self.lines else 0.0)
        self.write()
        return self.place / PAGE

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.run.log_metrics(metrics, step)
        if step is not None:
            self._add(step, metrics)

    def note(self, step: int, skipped: str) -> None:
        """Remember why a step was skipped."""
        self._add(step, {"skipped": skipped})

    def _add(self, step: int, what: Mapping[str, Any]) -> None:
        line = {"step": step, "seconds": round(time.monotonic() - self._start, 3), **what}
        add_line(self.lines, line)
        if time.monotonic() > self._due:
            self.write()
        elif self.place.is_local:
            # A process that dies right after its checkpoint has then left all that led there.
            with self._surviving(), open((self.place / METRICS).full_path, "ab") as file:
                file.write(format_line(line))

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:
        self.run.log_checkpoint(step, uri, num_bytes, digest)
        if step == self.header["num_steps"] or time.monotonic() > self._due:
            self.write()

    def log_file(self, name: str, content: bytes) -> None:
        self.run.log_file(name, content)

    def log_tag(self, key: str, value: str) -> None:
        self.run.log_tag(key, value)

    def write(self) -> None:
        """Write lines and page, and decide when to do it again."""
        begun = time.monotonic()
        with self._surviving():
            (self.place / METRICS).write_bytes(format_lines(self.header, self.lines))
            (self.place / PAGE).write_bytes(render_run(self.header, self.lines).encode())
        took = time.monotonic() - begun
        self._due = begun + took + max(REFRESH_S, took / MAX_SHARE)

    @contextmanager
    def _surviving(self) -> Iterator[None]:
        """Storage that is away for once stops no training."""
        try:
            yield
        except OSError as error:
            print(f"  the run's page cannot be written to {self.place}: {error}", flush=True)


def format_line(line: Mapping[str, Any]) -> bytes:
    return (json.dumps(line, ensure_ascii=False) + "\n").encode()


def format_lines(header: Mapping[str, Any], lines: list[Line]) -> bytes:
    return b"".join(map(format_line, ({"header": header}, *lines)))


def add_line(lines: list[Line], line: Line) -> None:
    """Add what was logged at a step to its line: a checkpoint that is written while training goes on is told of later."""
    place = bisect_left(lines, line["step"], key=itemgetter("step"))
    if place < len(lines) and lines[place]["step"] == line["step"]:
        lines[place] = {**line, **lines[place], **{name: line[name] for name in line.keys() - {"seconds"}}}
    else:
        lines.insert(place, line)


def read_history(place: Location) -> tuple[dict[str, Any], list[Line]]:
    """Return the header and the lines that a run has left in its folder; nothing where there is no run, or no header."""
    if not (place / METRICS).exists():
        return {}, []
    first, *rest = map(_read_line, (place / METRICS).read_bytes().split(b"\n"))
    if "header" not in first:
        return {}, []
    lines: list[Line] = []
    for line in rest:
        if "step" in line:
            add_line(lines, line)
    return first["header"], lines


def _read_line(written: bytes) -> Line:
    """Return a line; an empty one where a process or a disk died within it."""
    try:
        line = json.loads(written)
    except ValueError:
        return {}
    return line if isinstance(line, dict) else {}


def leave_page(place: Location, output: Location, run: Run) -> None:
    """Put the page of a finished run into its model's folder, and with its metrics into the tracker."""
    header, lines = read_history(place)
    if not header:
        print(f"  {place / METRICS} is not what this run has written; its model has no page", flush=True)
        return
    page = render_run(header, lines).encode()
    (output / PAGE).write_bytes(page)
    run.log_file(PAGE, page)
    run.log_file(METRICS, format_lines(header, lines))
