"""The tally: how much of a known number of things is done, how fast, and how long the rest will take.

In: a count, now and then. Out: a line and two metrics every few seconds, and when all is done. Long stages that work on things
in parts keep one.
"""

import time

from lisan.core.progress import say
from lisan.core.stage import Run

SAY_EVERY_S = 5.0


class Tally:
    """Counts what is done."""

    def __init__(self, verb: str, things: str, total: int, run: Run) -> None:
        self.verb, self.things, self.total, self.run = verb, things, total, run
        self.done = 0
        self.start = self.said = time.monotonic()

    def add(self, count: int = 1) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said <= SAY_EVERY_S and self.done < self.total:
            return
        self.said = now
        rate = self.done / max(1e-9, now - self.start)
        name, left_s = f"{self.verb}/{self.things}", (self.total - self.done) / rate
        self.run.log_metrics({name: float(self.done), f"{name}_per_s": rate}, self.done)
        say(f"  {self.verb} {self.done:,}/{self.total:,} {self.things}, {rate:,.1f}/s, {left_s:,.0f} s left")
