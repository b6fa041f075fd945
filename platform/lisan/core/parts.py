"""Parts of a long job, one file each: a job that was killed continues with the parts whose files are missing."""

from collections.abc import Sequence

from lisan.core.progress import say
from lisan.core.storage import Location


def part_path(index: int) -> str:
    """Return the file name of a part."""
    return f"part-{index:05d}.parquet"


def list_missing(folder: Location, paths: Sequence[str], verb: str) -> list[int]:
    """Return the indices of the part files that do not exist below `folder`, and print how many do."""
    done = {file.relative_to(folder) for file, _ in folder.walk()}
    missing = [index for index, path in enumerate(paths) if path not in done]
    if len(missing) < len(paths):
        say(f"  {len(paths) - len(missing)} of {len(paths)} parts are {verb} already")
    return missing
