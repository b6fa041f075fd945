"""Opens files for reading, decompressed by their first bytes; names do not count.

All that can be decompressed of a damaged file is read.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Iterator
from typing import IO, cast

import pyarrow as pa

from lisan.core.errors import DataError
from lisan.corpus.sources.files import location_of

_MAGIC = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


def compression_of(path: str) -> str:
    """Return gzip, bz2, xz, zstd, lz4, zip or '' by the first bytes of a file."""
    location = location_of(path)
    with location.file_system.open_input_file(location.full_path) as stream:
        head = stream.read(6)
    return next((name for magic, name in _MAGIC.items() if head.startswith(magic)), "")


def open_file(path: str) -> IO[bytes]:
    """Open a local path or a URI for buffered reading, decompressed."""
    location, compression = location_of(path), compression_of(path)
    if compression == "zip":
        raise DataError(f"{path} is a zip archive; unpack it")
    native = location.file_system.open_input_file(location.full_path)
    if compression in ("zstd", "lz4"):
        native = pa.CompressedInputStream(native, compression)
    raw = cast(IO[bytes], io.BufferedReader(native, buffer_size=1 << 20))
    if compression == "gzip":
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if compression == "bz2":
        return bz2.BZ2File(raw)
    if compression == "xz":
        return lzma.LZMAFile(raw)
    return raw


class DamageError(Exception):
    """A compressed file is truncated or corrupt; the message is the reason."""


def read_lines(stream: IO[bytes], path: str, offset: int) -> Iterator[bytes]:
    """Yield lines from `offset`, the position of the stream; DamageError after the last line that can be read."""
    try:
        for line in stream:
            yield line
            offset += len(line)
    except (EOFError, OSError, zlib.error, lzma.LZMAError) as error:
        if _is_network(error, path):
            raise
        yield from io.BytesIO(_read_rest(path, offset))
        raise DamageError(f"the {compression_of(path)} data is damaged: {error}") from error


def _is_network(error: Exception, path: str) -> bool:
    """Tell whether an error came from reading the file, not from decompression."""
    if not isinstance(error, OSError) or isinstance(error, gzip.BadGzipFile):
        return False
    return "://" in path or error.errno is not None or not compression_of(path)


def _read_rest(path: str, offset: int) -> bytes:
    """Return the whole lines after `offset` that can be decompressed.

    A failing decompressor drops the output of its last read, so the file is read again from there in small steps.
    """
    rest = bytearray()
    try:
        with open_file(path) as stream:
            while offset > 0:
                offset -= len(stream.read1(min(offset, 1 << 16)))  # type: ignore[attr-defined]
            while chunk := stream.read1(64):  # type: ignore[attr-defined]
                rest += chunk
    except (EOFError, OSError, zlib.error, lzma.LZMAError):
        pass  # the first pass failed here too
    return bytes(rest[: rest.rfind(b"\n") + 1])
