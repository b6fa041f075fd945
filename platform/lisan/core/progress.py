"""Progress of a process on its standard output: a line at least every 15 seconds, so that a silent job is a dead one.

`doing` names the work of a block; a thread prints that name with the elapsed seconds when nothing was printed for a while.
Code that writes to the terminal in another way calls `note` after it.
"""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

SILENCE_S = 10.0
"Pause after which the work is named again; less than 15 s, because the thread may wait for a busy processor."
FIRST_SILENCE_S = 3.0
"The same before the first line."
COUNT_EVERY_S = 5.0
"Time between two lines of an `ItemProgress`."


def write_line(line: str) -> None:
    print(line, flush=True)


@dataclass
class _Activity:
    """One block of `doing`."""

    name: str | Callable[[], str]
    "Empty for work that prints for itself, such as other processes; a function where the name changes."
    write: Callable[[str], None]
    start: float = field(default_factory=time.monotonic)

    def describe(self) -> str:
        if callable(self.name):
            return self.name()
        return self.name and f"  {self.name}, {time.monotonic() - self.start:.0f} s so far"


class Reporter:
    """Prints the innermost activity of a process after every pause in its output."""

    def __init__(self, silence_s: float = SILENCE_S, first_silence_s: float = FIRST_SILENCE_S) -> None:
        self.silence_s, self.first_silence_s = silence_s, first_silence_s
        self._activities: list[_Activity] = []
        self._due = 0.0

    def say(self, line: str) -> None:
        """Print a line."""
        self.note()
        write_line(line)

    def note(self) -> None:
        """Restart the pause, because something was printed."""
        self._due = time.monotonic() + self.silence_s

    @contextmanager
    def doing(self, name: str | Callable[[], str], write: Callable[[str], None] = write_line) -> Iterator[None]:
        """Name the activity of a block; a nested block replaces the name of the outer one."""
        is_outermost, over = not self._activities, threading.Event()
        self._activities.append(_Activity(name, write))
        if is_outermost:
            self._due = time.monotonic() + self.first_silence_s
            threading.Thread(target=self._watch, args=(over,), name="progress", daemon=True).start()
        try:
            yield
        finally:
            self._activities.pop()
            over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._due - time.monotonic())):
            activities = self._activities[-1:]  # one atomic read: the main thread may end the last one
            if activities and time.monotonic() >= self._due:
                self.note()
                if line := activities[0].describe():
                    activities[0].write(line)


_reporter = Reporter()
say, note, doing = _reporter.say, _reporter.note, _reporter.doing


class ItemProgress:
    """Counts finished items of a known total; prints and logs count, rate and remaining time every five seconds."""

    def __init__(self, verb: str, items: str, total: int, log: Callable[[Mapping[str, float], int], None]) -> None:
        self.verb, self.items, self.total, self.log = verb, items, total, log
        self.done = 0
        self.start = self.printed = time.monotonic()

    def add(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.printed <= COUNT_EVERY_S and self.done < self.total:
            return
        self.printed = now
        rate = self.done / max(1e-9, now - self.start)
        name, left_s = f"{self.verb}/{self.items}", (self.total - self.done) / rate
        self.log({name: float(self.done), f"{name}_per_s": rate}, self.done)
        say(f"  {self.verb} {self.done:,}/{self.total:,} {self.items}, {rate:,.1f}/s, {left_s:,.0f} s left")
