"""Files of a source by path: a file, a folder or a glob pattern, local or on an object store.

A path that exists is taken literally before it is read as a pattern. Files are sorted by name. A folder stands for all
files below it whose names fit the format.
"""

import fnmatch
import glob
import os
import posixpath
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow.fs as pafs

from lisan.core.errors import DataError
from lisan.core.storage import Location

SUFFIXES = {
    "jsonl": (".jsonl", ".ndjson"),
    "json": (".json",),
    "parquet": (".parquet", ".pq"),
    "csv": (".csv",),
    "tsv": (".tsv", ".tab"),
    "text": (".txt", ".text", ".md", ".markdown"),
    "aligned": ("",),
}
"Endings of names by format, for the files below a folder; one of `COMPRESSED` may follow."
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".zstd", ".lz4")
_WILDCARD = re.compile(r"[*?[]")
NUM_SHOWN = 5


@dataclass(frozen=True, slots=True)
class _Match:
    paths: list[str]
    others: list[str]
    "Files below a folder that are not of the format."
    folder: str
    "Without its scheme; what the names of files are relative to."
    is_folder: bool = False


def find_files(key: str, patterns: Sequence[str], format: str) -> list[str]:
    """Return the files that match, each pattern's by name; DataError naming the key when one matches none."""
    found: dict[str, None] = {}
    for pattern in patterns:
        match = _match(pattern, format)
        if not match.paths:
            raise DataError(
                f"{key}: {_explain(pattern, format, match)}, or leave the source out with ~{key.rpartition('.')[0]}"
            )
        found |= dict.fromkeys(match.paths)
    for path in found:
        if not _is_utf8(path):
            raise DataError(f"{key}: the name of the file {os.fsencode(path)!r} is not UTF-8; rename it")
    return list(found)


def shared_folder(patterns: Sequence[str]) -> str:
    """Return the deepest folder above all matches that follows from the patterns alone, without a scheme."""
    return posixpath.commonpath([_match(pattern, "").folder for pattern in patterns])


def plain_path(path: str) -> str:
    """Return the path without the scheme of a URI, absolute; `~` is the user's folder."""
    return "/" + path.split("://", 1)[1].lstrip("/") if "://" in path else os.path.abspath(os.path.expanduser(path))


def describe_folders(patterns: Sequence[str], format: str) -> Iterator[str]:
    """Yield a sentence for each pattern that is a folder: how many of its files are read and which are not."""
    for pattern in patterns:
        match = _match(pattern, format)
        if match.is_folder:
            others = f"; {len(match.others)} others left out: {_show(match.others)}" if match.others else ""
            yield f"{len(match.paths)} files of format {format} in {pattern}{others}"


def location_of(path: str) -> Location:
    """Return the location of a file; only the bucket or node of a URI is parsed, so the rest may hold any character."""
    if "://" not in path:
        return Location(path)
    scheme, rest = path.split("://", 1)
    node, _, below = rest.partition("/")
    return Location(f"{scheme}://{node or '/'}", below)


def file_size(path: str) -> int:
    location = location_of(path)
    return int(location.file_system.get_file_info(location.full_path).size)


def _match(pattern: str, format: str) -> _Match:
    return _match_uri(pattern, format) if "://" in pattern else _match_local(plain_path(pattern), format)


def _match_local(path: str, format: str) -> _Match:
    if os.path.isfile(path):
        return _Match([path], [], posixpath.dirname(path))
    if os.path.isdir(path):
        files = [os.path.join(folder, name) for folder, _, names in os.walk(path) for name in names]
        return _sort_out(path, files, format)
    paths = sorted(name for name in glob.glob(path, recursive=True) if os.path.isfile(name))
    return _Match(paths, [], _fixed_folder(path))


def _match_uri(uri: str, format: str) -> _Match:
    location = location_of(uri)
    head, base = uri.removesuffix(location.path), location.full_path.removesuffix(location.path)
    file_system, folder = location.file_system, _fixed_folder(location.full_path)
    literal = file_system.get_file_info(location.full_path)
    if literal.type == pafs.FileType.File:
        return _Match([uri], [], posixpath.dirname(plain_path(uri)))
    is_folder = literal.type == pafs.FileType.Directory
    selector = pafs.FileSelector(literal.path if is_folder else folder, recursive=True, allow_not_found=True)
    files = [info.path for info in file_system.get_file_info(selector) if info.type == pafs.FileType.File]
    if is_folder:
        return _sort_out(plain_path(uri), [head + path.removeprefix(base) for path in files], format)
    paths = [head + path.removeprefix(base) for path in sorted(files) if fnmatch.fnmatch(path, location.full_path)]
    return _Match(paths, [], _fixed_folder(plain_path(uri)))


def _fixed_folder(pattern: str) -> str:
    """Return the folder part of a pattern before its first wildcard."""
    wild = _WILDCARD.search(pattern)
    return posixpath.dirname(pattern[: wild.start()] if wild else pattern)


def _sort_out(folder: str, files: Sequence[str], format: str) -> _Match:
    """Part the files of a folder by their names; those that begin with a dot or an underscore belong to a program."""
    below = {path: posixpath.relpath(plain_path(path), folder) for path in sorted(files)}
    shown = {path: name for path, name in below.items() if not any(part[0] in "._" for part in name.split("/"))}
    paths = [path for path, name in shown.items() if _plain_name(name).endswith(SUFFIXES.get(format, ("",)))]
    return _Match(paths, [name for path, name in shown.items() if path not in set(paths)], folder, is_folder=True)


def _plain_name(name: str) -> str:
    """Return the name in lower case without the suffix of a compression."""
    stem, suffix = posixpath.splitext(name.lower())
    return stem if suffix in COMPRESSED else name.lower()


def _explain(pattern: str, format: str, match: _Match) -> str:
    if match.is_folder and match.others:
        wanted = ", ".join(SUFFIXES[format])
        return f"the folder {pattern} has no {wanted} for format={format}, it has {_show(match.others)}; name files or a pattern"
    near = os.listdir(match.folder) if "://" not in pattern and os.path.isdir(match.folder) else []
    there = f" ({match.folder} has {_show(sorted(near))})" if near else ""
    return f"no file matches {pattern}{there}; correct it"


def _show(names: Sequence[str]) -> str:
    more = f" and {len(names) - NUM_SHOWN} more" if len(names) > NUM_SHOWN else ""
    return ", ".join(os.fsencode(name).decode(errors="replace") for name in names[:NUM_SHOWN]) + more


def _is_utf8(path: str) -> bool:
    try:
        return bool(path.encode())
    except UnicodeEncodeError:
        return False
