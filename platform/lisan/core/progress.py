"""Says what a process is doing, at least every 15 seconds.

A stage names its work with `doing`; a thread prints that name with the seconds so far when nothing was said for a while.
What goes on without printing calls `note` when it has spoken by another way.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

SILENCE_S = 10.0
"After which the work is named again: less than 15 s, because the thread may wait for a busy processor."
FIRST_SILENCE_S = 3.0
"The same before the first line."


def write_line(line: str) -> None:
    print(line, flush=True)


@dataclass
class Work:
    """One thing that a process does."""

    name: str | Callable[[], str]
    "Empty for work that speaks for itself, such as that of other processes; a function where the name changes."
    write: Callable[[str], None]
    begun: float = field(default_factory=time.monotonic)

    def describe(self) -> str:
        if callable(self.name):
            return self.name()
        return self.name and f"  {self.name}, {time.monotonic() - self.begun:.0f} s so far"


class Reporter:
    """Names the innermost work of a process after every silence."""

    def __init__(self, silence_s: float = SILENCE_S, first_silence_s: float = FIRST_SILENCE_S) -> None:
        self.silence_s, self.first_silence_s = silence_s, first_silence_s
        self._works: list[Work] = []
        self._due = 0.0

    def say(self, line: str) -> None:
        """Print a line."""
        self.note()
        write_line(line)

    def note(self) -> None:
        """Begin to count the silence anew."""
        self._due = time.monotonic() + self.silence_s

    @contextmanager
    def doing(self, name: str | Callable[[], str], write: Callable[[str], None] = write_line) -> Iterator[None]:
        """Name the work of the block; inside of other work, instead of it."""
        is_outermost, over = not self._works, threading.Event()
        self._works.append(Work(name, write))
        if is_outermost:
            self._due = time.monotonic() + self.first_silence_s
            threading.Thread(target=self._watch, args=(over,), name="progress", daemon=True).start()
        try:
            yield
        finally:
            self._works.pop()
            over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._due - time.monotonic())):
            works = self._works[-1:]  # one step, for the other thread may end the last
            if works and time.monotonic() >= self._due:
                self.note()
                if line := works[0].describe():
                    works[0].write(line)


_reporter = Reporter()
say, note, doing = _reporter.say, _reporter.note, _reporter.doing
