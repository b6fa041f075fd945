"""Prints the progress of a run: a live line with a bar on a terminal, plain lines in a log.

After training has begun everything is printed here, so that no line breaks the bar. Without a terminal (a file, or a Ray worker,
whose output the driver prints) nothing is drawn.
"""

import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from lisan.core.progress import note

REFRESH_S = 0.1
"Between two redraws of the bar: one takes a millisecond."
MAX_BAR = 30


class ProgressLine:
    """Prints lines and draws the bar; `close` restores the terminal."""

    def __init__(self, out: TextIO | None = None) -> None:
        self._out = out or sys.stdout
        self.is_live = self._out.isatty()
        self._bar: Any = None
        self._drawn = 0.0
        self._work, self._begun = "first step", time.monotonic()

    def begin(self, work: str) -> None:
        """Set the current work, for `describe`."""
        self._work, self._begun = work, time.monotonic()

    def describe(self) -> str:
        """Return the current work and its duration from 1 s on."""
        seconds = time.monotonic() - self._begun
        return f"  {self._work}, {seconds:.0f} s so far" if seconds >= 1 else f"  {self._work}"

    def say(self, line: str) -> None:
        """Print a permanent line."""
        note()
        if self._bar is None:
            print(line, file=self._out, flush=True)
        else:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def show(self, step: int, num_steps: int, numbers: str) -> None:
        """Draw the bar on a terminal; the last step always, others at most every REFRESH_S."""
        now = time.monotonic()
        if not self.is_live or (step < num_steps and now - self._drawn < REFRESH_S):
            return
        self._drawn = now
        note()
        if self._bar is None:
            self._bar = _make_bar(self._out, num_steps)
            self._bar.start()
        self._bar.update(self._bar.task_ids[0], completed=step, numbers=numbers)
        self._bar.refresh()

    def close(self) -> None:
        """Keep the last bar on the terminal and restore the cursor."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _make_bar(out: TextIO, num_steps: int) -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as RichProgress
    from rich.table import Column

    columns = (
        TextColumn("  step {task.completed}/{task.total}", style="", table_column=Column(no_wrap=True)),
        # Takes the width that the numbers leave, so that the line does not wrap.
        BarColumn(bar_width=None, table_column=Column(ratio=1, max_width=MAX_BAR)),
        TextColumn("{task.fields[numbers]}", style="", markup=False, table_column=Column(no_wrap=True)),
    )
    bar = RichProgress(*columns, console=Console(file=out), auto_refresh=False, expand=True)
    bar.add_task("", total=num_steps, numbers="")
    return bar


def format_count(value: float) -> str:
    """Return a count with a decimal unit.

    >>> format_count(1234), format_count(56_700_000), format_count(8.03e9), format_count(312)
    ('1.2k', '56.7M', '8.0B', '312')
    """
    return _scale(value, 1000, ("", "k", "M", "B", "T"))


def format_bytes(value: float) -> str:
    """Return a size in decimal units.

    >>> format_bytes(3_140_000_000)
    '3.1 GB'
    """
    return _scale(value, 1000, (" B", " kB", " MB", " GB", " TB"))


def _scale(value: float, base: int, units: Sequence[str]) -> str:
    place = 0
    while place < len(units) - 1 and round(value, 1) >= base:
        value, place = value / base, place + 1
    return f"{value:.1f}{units[place]}" if place else f"{value:.0f}{units[0]}"


def format_seconds(seconds: float) -> str:
    """Return a duration in its two largest units.

    >>> format_seconds(192), format_seconds(7_500), format_seconds(9.4)
    ('3 m 12 s', '2 h 5 m', '9 s')
    """
    whole = round(seconds)
    days, rest = divmod(whole, 86_400)
    hours, rest = divmod(rest, 3600)
    minutes, left = divmod(rest, 60)
    parts = [f"{value} {unit}" for value, unit in ((days, "d"), (hours, "h"), (minutes, "m"), (left, "s")) if value]
    return " ".join(parts[:2]) or "0 s"
