"""Runs a coroutine over many prompts in resumable parts.

Each part is one Parquet file of answered prompts, written when the whole part is done. A restarted job skips the parts that
have a file.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from lisan.core.parts import part_path
from lisan.core.progress import ItemProgress
from lisan.core.storage import Location
from lisan.inference.answers import AnsweredPrompt, write_answers

T = TypeVar("T")
CONCURRENT_PARTS = 2
"With one part at a time, every part would end with the wait for its longest answer."


@dataclass(frozen=True)
class PartWork(Generic[T]):
    """Work on the items of a part."""

    read: Callable[[int], Sequence[T]]
    "Returns the items of a part."
    process: Callable[[T], Awaitable[AnsweredPrompt]]
    check: Callable[[], None]
    "Called before a part is written; raises when every request was refused, so that a restart repeats them."


async def work_in_parts(folder: Location, indices: Sequence[int], work: PartWork[T], progress: ItemProgress) -> None:
    """Process the parts of these indices; the first error ends the job, and the written parts stay."""
    slots = asyncio.Semaphore(CONCURRENT_PARTS)

    async def process_item(item: T) -> AnsweredPrompt:
        answered = await work.process(item)
        progress.add()
        return answered

    async def process_part(index: int) -> None:
        async with slots:
            done = await asyncio.gather(*map(process_item, work.read(index)))
            work.check()
            write_answers(folder / part_path(index), done)

    await asyncio.gather(*map(process_part, indices))
