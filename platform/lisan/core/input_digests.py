"""Digests of files and folders that a config names and that no artifact holds: a model's folder, a corpus's sources.

In: what the fields of a config say: paths, URIs, hub ids. Out: a digest of every file that is there, by the path that the config
gives it. Always: a file of another size, or of other contents in what is read of it, has another digest; of a file over 1 MiB
sixteen blocks are read, evenly spaced, which no retrained weights share; of an object its size and time of change are taken. A
hub id has no files here.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lisan.core.errors import ConfigError
from lisan.core.lazy_import import lazy_import
from lisan.core.storage import Location

if TYPE_CHECKING:
    import pyarrow.fs as pafs
else:
    pafs = lazy_import("pyarrow.fs")

OF_MODELS = (".json", ".safetensors", ".bin", ".model", ".jinja", ".txt")
"Files that make a folder another model or tokenizer; notes, logs and folders in it are none of them."
WHOLE_BYTES = 1 << 20
NUM_BLOCKS, BLOCK_BYTES = 16, 16 << 10


def digest_inputs(places: Iterable[str]) -> dict[str, str]:
    """Return the digest of every file that these places name or hold; a place that is not there has none."""
    files = list(dict.fromkeys(file for place in places for file in _list(place)))
    with ThreadPoolExecutor(16) as threads:
        digests = threads.map(_digest, files)
        return {file: digest for file, digest in zip(files, digests, strict=True) if digest}


def find_change(recorded: Mapping[str, str] | None, now: Mapping[str, str]) -> str | None:
    """Return a file that is another one than was recorded, or was not there; what is gone by now is no other."""
    if recorded is None:  # by a version that did not look
        return None
    return next((file for file, digest in now.items() if recorded.get(file) != digest), None)


def _list(place: str) -> Iterator[str]:
    if "://" in place:
        yield place
        return
    path = Path(place).expanduser()
    if path.is_file():
        yield place
    elif path.is_dir():
        yield from (
            f"{place.rstrip('/')}/{file.name}"
            for file in sorted(path.iterdir())
            if file.suffix in OF_MODELS and file.is_file()
        )


def _digest(file: str) -> str:
    """Hash what tells a file from another; empty for one that cannot be looked at, as when its store is away."""
    with suppress(OSError, ConfigError):
        return _digest_object(Location(file)) if "://" in file else _digest_file(Path(file).expanduser())
    return ""


def _digest_object(place: Location) -> str:
    infos = [place.file_system.get_file_info(place.full_path)]
    if infos[0].type == pafs.FileType.Directory:
        infos = place.file_system.get_file_info(pafs.FileSelector(place.full_path))
    states = sorted(f"{info.path} {info.size} {info.mtime_ns}" for info in infos if info.is_file)
    return _hash("\n".join(states).encode()) if states else ""


def _digest_file(file: Path) -> str:
    size = file.stat().st_size
    with file.open("rb") as stream:
        if size <= WHOLE_BYTES:
            return _hash(stream.read())
        blocks = [str(size).encode()]
        for number in range(NUM_BLOCKS):
            stream.seek((size - BLOCK_BYTES) * number // (NUM_BLOCKS - 1))
            blocks.append(stream.read(BLOCK_BYTES))
    return _hash(b"".join(blocks))


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]
