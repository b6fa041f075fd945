"""Work on many prompts in parts, so that a killed job goes on where it was.

In: parts of things to work on, and a coroutine for one of them. Out: one file a part, written when the whole part is done.
Always: the work of a part that has its file is not done again; the last of one part overlap with the first of the next.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from lisan.core.stage import Run
from lisan.core.storage import Location
from lisan.synth.sample import Asked, write_asked

PARTS_AT_ONCE = 2
"So that nobody waits for the longest answer of a part."
SAY_EVERY_S = 5.0


def part_path(index: int) -> str:
    return f"part-{index:05d}.parquet"


def list_missing(folder: Location, num_parts: int) -> list[int]:
    """Return the parts that are still to be done."""
    done = {place.name for place in folder.list()}
    return [index for index in range(num_parts) if part_path(index) not in done]


class Progress:
    """Counts prompts, and says every few seconds how many there are left."""

    def __init__(self, verb: str, total: int, run: Run) -> None:
        self.verb, self.total, self.run = verb, total, run
        self.done = 0
        self.start = self.said = time.monotonic()

    def add(self) -> None:
        self.done += 1
        now = time.monotonic()
        if now - self.said > SAY_EVERY_S or self.done == self.total:
            self.said = now
            rate = self.done / (now - self.start)
            left_s = (self.total - self.done) / rate
            self.run.log_metrics(
                {f"{self.verb}/prompts": float(self.done), f"{self.verb}/prompts_per_s": rate}, self.done
            )
            print(f"  {self.verb} {self.done:,}/{self.total:,} prompts, {rate:.1f}/s, {left_s:,.0f} s left", flush=True)


@dataclass(frozen=True)
class Work:
    """What is done to a part."""

    read: Callable[[int], Iterable[object]]
    "Gives the things of a part."
    do: Callable[[object], Awaitable[Asked]]
    check: Callable[[], None]
    "Raises when what was done so far is worth nothing; asked before a part is written, for a written one is not done again."


async def work_in_parts(folder: Location, indices: Sequence[int], work: Work, progress: Progress) -> None:
    """Do the parts of these indices; the first failure ends it all, and what is written stays."""
    slots = asyncio.Semaphore(PARTS_AT_ONCE)

    async def do_one(item: object) -> Asked:
        asked = await work.do(item)
        progress.add()
        return asked

    async def do_part(index: int) -> None:
        async with slots:
            done = await asyncio.gather(*map(do_one, work.read(index)))
            work.check()
            write_asked(folder / part_path(index), done)

    await asyncio.gather(*map(do_part, indices))
