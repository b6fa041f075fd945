"""Files and folders on a local disk or an object store, through one file system API (pyarrow.fs).

A `Location` is a root URI and a path below it; it pickles as text and opens its file system on use. Local
roots are absolute paths; others are URIs such as `s3://bucket/prefix?region=eu-west-1` or `gs://bucket/prefix`.
"""

import hashlib
import json
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from lisan.core.credentials import hide_credentials
from lisan.core.errors import ArtifactError, ConfigError, LisanError, first_line
from lisan.core.lazy_import import lazy_import

if TYPE_CHECKING:
    import pyarrow.fs as pafs
else:
    pafs = lazy_import("pyarrow.fs")


def default_root() -> str:
    """Return the root that `LISAN_HOME` names, or `~/lisan`."""
    return os.environ.get("LISAN_HOME") or str(Path.home() / "lisan")


def cache_folder() -> Path:
    """Return the folder for local copies of remote files and for marks of verified files: `LISAN_CACHE`, or `~/.cache/lisan`."""
    return Path(os.environ.get("LISAN_CACHE", Path.home() / ".cache" / "lisan"))


@lru_cache(maxsize=16)
def _open_root(root: str) -> "tuple[pafs.FileSystem, str]":
    if "://" not in root:
        path = Path(root).expanduser()
        if not path.is_absolute():
            raise ConfigError(
                f"{root} must be an absolute path or a URI such as s3://bucket/prefix; "
                "a relative path would move with the folder a job happens to run in"
            )
        return pafs.LocalFileSystem(), str(path)
    try:
        file_system, path = pafs.FileSystem.from_uri(root)
    except Exception as error:
        raise ConfigError(
            f"{hide_credentials(root)} cannot be opened: {_reason(error)}; expected a path, s3://, gs:// or hdfs://, a bucket that "
            "exists and an endpoint that answers"
        ) from error
    return file_system, path.rstrip("/") or path[:1]


def _reason(error: Exception) -> str:
    """Return the first line of an error, without credentials of URLs."""
    return hide_credentials(first_line(error))


def check_root(root: str) -> None:
    """Refuse an object store that does not answer, or a bucket that does not exist; ConfigError."""
    try:
        file_system, path = _open_root(root)
    except ConfigError as error:
        raise ConfigError(f"storage.root {error}") from error
    if isinstance(file_system, pafs.LocalFileSystem) or path.startswith("/"):
        return
    bucket, shown = path.partition("/")[0], hide_credentials(root)
    try:
        is_missing = file_system.get_file_info(bucket).type == pafs.FileType.NotFound
    except Exception as error:
        raise ConfigError(
            f"storage.root {shown} cannot be reached: {_reason(error)}; check its endpoint, its keys and your access to it"
        ) from error
    if is_missing:
        raise ConfigError(
            f"storage.root {shown}: there is no bucket {bucket}; create it, or set storage.root elsewhere"
        )


@contextmanager
def writing(location: "Location", what: str) -> Iterator[None]:
    """Turn the errors of libraries that cannot write into one ArtifactError; they have many types for a full disk."""
    try:
        yield
    except (LisanError, ArithmeticError, AssertionError, AttributeError, LookupError, NameError, TypeError):
        raise  # no errors of storage
    except Exception as error:
        free = f" ({shutil.disk_usage(_existing(location)).free / 1e6:,.0f} MB free there)" if location.is_local else ""
        raise ArtifactError(
            f"{what} cannot be written to {location}{free}: {_reason(error)}; make room or set storage.root elsewhere, then run "
            "the same command again"
        ) from error


@contextmanager
def workspace(location: "Location", name: str) -> Iterator[Path]:
    """Yield a local folder for files to upload: the location itself, or a temporary folder that is deleted afterwards."""
    if location.is_local:
        folder = Path(location.full_path)
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix=f"lisan-{name}-", ignore_cleanup_errors=True) as temporary:
        yield Path(temporary)


def _existing(location: "Location") -> Path:
    folder = Path(location.full_path)
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


@dataclass(frozen=True)
class Location:
    """A file or folder on storage.

    `str` is for people, manifests and MLflow: it leaves out the root's settings and credentials; `resolve` restores the
    settings.
    """

    root: str
    path: str = ""

    def __str__(self) -> str:
        if self.is_local:
            return self._full
        # Paths of buckets begin with the bucket; those of HDFS are absolute, and its node is what comes before them.
        node = urlsplit(self.root).netloc.rpartition("@")[2] if self._full.startswith("/") else ""
        return f"{self.root.split('://')[0]}://{node}{self._full}"

    def resolve(self, text: str) -> "Location":
        """Return the location of a text: with the settings of this one when it lies below, otherwise with its own."""
        here = str(self)
        if text == here:
            return self
        below = text.removeprefix(here.rstrip("/") + "/")
        has_settings = "://" in text and "?" in text
        return Location(text) if below == text or has_settings else self / below

    def __truediv__(self, part: str) -> "Location":
        return Location(self.root, posixpath.join(self.path, part))

    @property
    def name(self) -> str:
        return posixpath.basename(self.path)

    @property
    def parent(self) -> "Location":
        """Folder that this file or folder lies in; a root has none."""
        assert self.path, f"{self} is a root"
        return Location(self.root, posixpath.dirname(self.path))

    @property
    def file_system(self) -> "pafs.FileSystem":
        return _open_root(self.root)[0]

    @property
    def _full(self) -> str:
        base = _open_root(self.root)[1]
        return posixpath.join(base, self.path) if self.path else base

    @property
    def full_path(self) -> str:
        """Path as `file_system` understands it."""
        return self._full

    @property
    def is_local(self) -> bool:
        return isinstance(self.file_system, pafs.LocalFileSystem)

    def exists(self) -> bool:
        return bool(self.file_system.get_file_info(self._full).type != pafs.FileType.NotFound)

    def list(self) -> list["Location"]:
        """Return the entries of this folder, sorted by name; a folder that does not exist is empty."""
        return [self / name for name in sorted(info.base_name for info in self._list_infos())]

    def walk(self) -> Iterator[tuple["Location", int]]:
        """Yield every file below this folder with its size in bytes, by path."""
        for info in sorted(self._list_infos(recursive=True), key=lambda item: item.path):
            if info.type == pafs.FileType.File:
                yield self / posixpath.relpath(info.path, self._full), info.size

    def _list_infos(self, recursive: bool = False) -> "Sequence[pafs.FileInfo]":
        selector = pafs.FileSelector(self._full, recursive=recursive, allow_not_found=True)
        try:
            return tuple(self.file_system.get_file_info(selector))
        except FileNotFoundError:
            # Arrow checks twice, for entries and for existence; the folder was created in between.
            return tuple(self.file_system.get_file_info(selector))

    def relative_to(self, folder: "Location") -> str:
        return posixpath.relpath(self._full, folder._full)

    def make(self) -> "Location":
        self.file_system.create_dir(self._full, recursive=True)
        return self

    def delete(self) -> None:
        info = self.file_system.get_file_info(self._full)
        if info.type == pafs.FileType.Directory:
            self.file_system.delete_dir(self._full)
        elif info.type == pafs.FileType.File:
            self.file_system.delete_file(self._full)

    def read_bytes(self) -> bytes:
        with self.file_system.open_input_stream(self._full) as stream:
            data: bytes = stream.read()
        return data

    def write_bytes(self, data: bytes) -> None:
        """Write the whole file, atomically on a local disk."""
        parent = posixpath.dirname(self._full)
        self.file_system.create_dir(parent, recursive=True)
        target = f"{self._full}.part" if self.is_local else self._full
        with self.file_system.open_output_stream(target) as stream:
            stream.write(data)
        if self.is_local:
            os.replace(target, self._full)

    def read_json(self) -> Any:
        return json.loads(self.read_bytes())

    def write_json(self, value: Any) -> None:
        self.write_bytes(json.dumps(value, ensure_ascii=False, indent=1, default=str).encode())

    def upload(self, folder: Path) -> None:
        """Copy the contents of a local folder here; does nothing when the folder is this one."""
        if self.is_local and Path(self._full).resolve() == folder.resolve():
            return
        self.make()
        pafs.copy_files(
            str(folder), self._full, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=self.file_system
        )

    def local_folder(self) -> Path:
        """Return this folder as a local path; from an object store it is fetched once, and again after it changes."""
        return Path(self._full) if self.is_local else self._fetch(pafs.FileSelector(self._full, recursive=True))

    def local_file(self) -> Path:
        """Return this file as a local path, fetched as a folder is; an open file keeps its contents."""
        return Path(self._full) if self.is_local else self._fetch([self._full])

    def _fetch(self, what: "pafs.FileSelector | Sequence[str]") -> Path:
        """Copy to a temporary name first, so that the cache holds only complete copies."""
        target = cache_folder() / self._full.lstrip("/") / _state(self.file_system.get_file_info(what))
        if target.exists():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
            part = Path(scratch) / "part"
            if isinstance(what, pafs.FileSelector):
                part.mkdir()
            pafs.copy_files(
                self._full, str(part), source_filesystem=self.file_system, destination_filesystem=pafs.LocalFileSystem()
            )
            try:
                part.rename(target)
            except OSError:
                if not target.exists():  # no other process finished first
                    raise
        return target


def _state(infos: "Sequence[pafs.FileInfo]") -> str:
    """Hash names, sizes and modification times of files: a file that was written again has another hash."""
    lines = sorted(f"{info.path} {info.size} {info.mtime_ns}" for info in infos if info.type == pafs.FileType.File)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
