"""Reads checkpoint shards from a disk or an object store for DCP.

A worker fetches only the bytes of the tensors that it loads, without those of the optimizer where only weights are loaded, and
leaves no file on the machine.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.filesystem import FileSystem

from lisan.core.storage import Location

METADATA = ".metadata"
"Of all shards, by DCP."


class _Files(FileSystem):
    """DCP's view of the files of a place."""

    def __init__(self, place: Location) -> None:
        self.place = place

    def concat_path(self, path: Any, suffix: str) -> Any:  # noqa: ARG002  DCP knows of one folder
        return suffix

    @contextmanager
    def create_stream(self, path: Any, mode: str) -> Iterator[Any]:  # type: ignore[override]  # noqa: ARG002
        if path == METADATA:
            yield io.BytesIO((self.place / METADATA).read_bytes())
            return
        with self.place.file_system.open_input_file((self.place / str(path)).full_path) as file:
            yield file


class ShardReader(FileSystemReader):
    """Reads one checkpoint."""

    def __init__(self, place: Location) -> None:
        super().__init__(place.full_path)
        self.fs = _Files(place)

    def _slice_file(self, file: Any, sinfo: Any) -> IO[bytes]:
        # One request for a tensor: torch.load would go to and fro in it.
        return io.BytesIO(file.read_at(sinfo.length, sinfo.offset))
