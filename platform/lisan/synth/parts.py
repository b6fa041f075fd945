"""Work on many prompts in parts, so that a killed job goes on where it was.

In: parts of things to work on, and a coroutine for one of them. Out: one file a part, written when the whole part is done.
Always: the work of a part that has its file is not done again; the last of one part overlap with the first of the next.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from lisan.core.parts import part_path
from lisan.core.progress import ItemProgress
from lisan.core.storage import Location
from lisan.inference.generate import Asked, write_asked

PARTS_AT_ONCE = 2
"So that nobody waits for the longest answer of a part."


@dataclass(frozen=True)
class Work:
    """What is done to a part."""

    read: Callable[[int], Iterable[object]]
    "Gives the things of a part."
    do: Callable[[object], Awaitable[Asked]]
    check: Callable[[], None]
    "Raises when what was done so far is worth nothing; asked before a part is written, for a written one is not done again."


async def work_in_parts(folder: Location, indices: Sequence[int], work: Work, progress: ItemProgress) -> None:
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
