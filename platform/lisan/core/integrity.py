"""Opens files of an artifact and checks them against its manifest.

Sizes are compared when an artifact is opened, hashes when a file is first read on a machine. A verified file leaves a mark
under its path, size and modification time, so that it is hashed once. An ArtifactError names the file, the artifact and
the job to run again. A folder without a manifest is read unchecked.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lisan.core.errors import ArtifactError
from lisan.core.lazy_import import lazy_import
from lisan.core.storage import Location, cache_folder

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.fs as pafs
else:
    pa = lazy_import("pyarrow")
    pafs = lazy_import("pyarrow.fs")

MANIFEST = "manifest.json"
SETTLED_S = 2.0
"A file younger than this leaves no mark: it could change again with the same modification time (S3 counts in seconds)."
ANNOUNCED_BYTES = 2 << 30
"Hashing more than this takes one to ten seconds and is announced."
CHUNK_BYTES = 4 << 20

Files = Mapping[str, Mapping[str, Any]]
"`bytes` and `sha256` of every file, by its path below the folder."


@dataclass(frozen=True)
class Listed:
    """A folder with the list of its files."""

    folder: Location
    files: Files = field(repr=False)
    what: str
    "Its name in messages."
    remedy: str

    def damaged(self, path: str, fault: str) -> ArtifactError:
        return ArtifactError(f"{self.what} is damaged: {self.folder / path} {fault}; {self.remedy}")


def read_manifest(folder: Location) -> dict[str, Any]:
    """Return the manifest of a finished artifact; ArtifactError when it is cut off or not a manifest."""
    try:
        manifest: dict[str, Any] = (folder / MANIFEST).read_json()
        _ = manifest["ref"], manifest["fingerprint"], manifest["config"], manifest["parents"], manifest["facts"]
        _ = [(facts["bytes"], facts["sha256"]) for facts in manifest["files"].values()]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ArtifactError(
            f"{folder / MANIFEST} is cut off or no manifest; delete {folder} and run the job that made it again"
        ) from error
    return manifest


def list_files(folder: Location, manifest: Mapping[str, Any]) -> Listed:
    job = manifest.get("job") or "the job that made it"
    return Listed(folder, manifest["files"], manifest["ref"], f"delete {folder} and run {job} again")


def check_sizes(listed: Listed) -> None:
    """Raise ArtifactError for the first file that is missing or has another size; reads only the listing."""
    sizes = {file.relative_to(listed.folder): size for file, size in listed.folder.walk()}
    for path, facts in listed.files.items():
        if path not in sizes:
            raise listed.damaged(path, "is missing")
        if sizes[path] != facts["bytes"]:
            raise listed.damaged(path, f"has {sizes[path]:,} bytes where {facts['bytes']:,} were written")


def check_hashes(listed: Listed, paths: Iterable[str] | None = None) -> None:
    """Hash the files without a mark, in parallel; ArtifactError for the first whose hash differs."""
    infos = {path: _look(listed.folder / path) for path in (listed.files if paths is None else paths)}
    todo = [path for path, info in infos.items() if not _mark_path(listed, path, info).exists()]
    num_bytes = sum(listed.files[path]["bytes"] for path in todo)
    if num_bytes > ANNOUNCED_BYTES:
        print(f"  checking {len(todo):,} files of {listed.what} ({num_bytes / 1e9:.1f} GB)", flush=True)

    def check(path: str) -> None:
        if infos[path].type == pafs.FileType.NotFound:
            raise listed.damaged(path, "is missing")
        _compare(listed, path, hash_file(listed.folder / path), infos[path])

    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        list(threads.map(check, todo))


def fetch_folder(folder: Location) -> Path:
    """Return a folder as a local path; the files of an artifact are verified."""
    local = folder.local_folder()
    listed = _find_list(folder)
    if listed is not None:
        check_hashes(Listed(Location(str(local)), listed.files, listed.what, _remedy(listed, local)))
    return local


def fetch_file(folder: Location, path: str) -> Path:
    """Return one file of an artifact as a verified local path."""
    listed, local = _find_list(folder), (folder / path).local_file()
    if listed is not None and path in listed.files:
        own = {local.name: listed.files[path]}
        check_hashes(Listed(Location(str(local.parent)), own, listed.what, _remedy(listed, local)))
    return local


def open_file(folder: Location, path: str) -> "pa.NativeFile":
    """Open one file of an artifact for random access, verified; a remote file without a mark is read into memory once."""
    file, listed = folder / path, _find_list(folder)
    if listed is not None and path in listed.files:
        info = _look(file)
        if not file.is_local and not _mark_path(listed, path, info).exists():  # one transfer instead of two
            data = file.read_bytes()
            _compare(listed, path, hashlib.sha256(data).hexdigest(), info)
            return pa.BufferReader(data)
        check_hashes(listed, [path])
    return file.file_system.open_input_file(file.full_path)


def hash_files(folder: Location, sizes: Mapping[str, int]) -> Files:
    """Return size and hash of files that were just written, and mark them as verified on this machine."""
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as threads:
        hashes = threads.map(lambda path: hash_file(folder / path), sizes)
        files = {path: {"bytes": sizes[path], "sha256": sha} for path, sha in zip(sizes, hashes, strict=True)}
    for path in files:
        _mark(Listed(folder, files, "", ""), path, _look(folder / path))
    return files


def hash_file(file: Location) -> str:
    digest = hashlib.sha256()
    with file.file_system.open_input_stream(file.full_path) as stream:
        while chunk := stream.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _remedy(listed: Listed, local: Path) -> str:
    """Return the remedy for a damaged file; for a copy from an object store, delete the copy first."""
    if listed.folder.is_local:
        return listed.remedy
    return f"delete {local}, which is fetched again; if that does not help, {listed.remedy}"


def _find_list(folder: Location) -> Listed | None:
    info = _look(folder / MANIFEST)
    return None if info.type == pafs.FileType.NotFound else _read_list(folder, info.mtime_ns)


@lru_cache(maxsize=32)
def _read_list(folder: Location, mtime_ns: int) -> Listed:  # noqa: ARG001  an artifact that was built again has another mtime
    return list_files(folder, read_manifest(folder))


def _look(file: Location) -> "pafs.FileInfo":
    return file.file_system.get_file_info(file.full_path)


def _compare(listed: Listed, path: str, found: str, info: "pafs.FileInfo") -> None:
    """Raise ArtifactError when the hash differs from the manifest; otherwise mark the file as verified."""
    wanted = listed.files[path]["sha256"]
    if found != wanted:
        raise listed.damaged(path, f"is not what was written (sha256 {found[:12]}, not {wanted[:12]})")
    _mark(listed, path, info)


def _mark(listed: Listed, path: str, info: "pafs.FileInfo") -> None:
    if info.mtime is None or time.time() - info.mtime_ns / 1e9 < SETTLED_S:
        return
    mark = _mark_path(listed, path, info)
    with suppress(OSError):  # without a mark the file is hashed again
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()


def _mark_path(listed: Listed, path: str, info: "pafs.FileInfo") -> Path:
    state = json.dumps([str(listed.folder / path), info.size, info.mtime_ns, listed.files[path]["sha256"]])
    name = hashlib.sha256(state.encode()).hexdigest()
    return cache_folder() / "hashed" / name[:2] / name[2:34]
