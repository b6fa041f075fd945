"""Digests of files outside of artifacts that a config names: a model's folder, a corpus's sources.

A file up to 1 MiB is hashed whole, a larger one by its size and sixteen evenly spaced blocks, which no retrained weights
share. An object on an object store is identified by size and modification time. Hub ids have no files here.
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
"Suffixes of files that define a model or tokenizer; other files and folders do not count."
WHOLE_BYTES = 1 << 20
NUM_BLOCKS, BLOCK_BYTES = 16, 16 << 10


def digest_inputs(names: Iterable[str]) -> dict[str, str]:
    """Return the digest of every file that the names (paths, URIs, hub ids) stand for; a missing path has none."""
    files = list(dict.fromkeys(file for name in names for file in _list(name)))
    with ThreadPoolExecutor(16) as threads:
        digests = threads.map(_digest, files)
        return {file: digest for file, digest in zip(files, digests, strict=True) if digest}


def find_change(recorded: Mapping[str, str] | None, now: Mapping[str, str]) -> str | None:
    """Return the first file that is new or whose digest changed; None when there is none. A file that is gone does not count."""
    if recorded is None:  # by a version without digests
        return None
    return next((file for file, digest in now.items() if recorded.get(file) != digest), None)


def _list(name: str) -> Iterator[str]:
    if "://" in name:
        yield name
        return
    path = Path(name).expanduser()
    if path.is_file():
        yield name
    elif path.is_dir():
        yield from (
            f"{name.rstrip('/')}/{file.name}"
            for file in sorted(path.iterdir())
            if file.suffix in OF_MODELS and file.is_file()
        )


def _digest(file: str) -> str:
    """Return the digest of a file; empty when it cannot be read, for example when its store does not answer."""
    with suppress(OSError, ConfigError):
        return _digest_object(Location(file)) if "://" in file else _digest_file(Path(file).expanduser())
    return ""


def _digest_object(location: Location) -> str:
    infos = [location.file_system.get_file_info(location.full_path)]
    if infos[0].type == pafs.FileType.Directory:
        infos = location.file_system.get_file_info(pafs.FileSelector(location.full_path))
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
