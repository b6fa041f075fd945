"""Names in a config that stand for an artifact (`model/base@v1`), a local folder, or an id on the Hugging Face hub (`org/name`)."""

from pathlib import Path

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.integrity import fetch_folder
from lisan.core.storage import Location


def parse_refs(*names: str | None, kind: Kind | None = None) -> tuple[Ref, ...]:
    """Return the artifacts among the names; folders, hub ids and None are left out. ConfigError for another kind."""
    return tuple(Ref.parse(name, kind) for name in names if name and Ref.looks_like(name))


def find_named(store: Store, name: str, kind: Kind | None = None) -> Location | str:
    """Return the folder of an artifact, or the name itself for a local folder or hub id."""
    refs = parse_refs(name, kind=kind)
    return store.open(refs[0]).location if refs else name


def fetch_named(store: Store, name: str, kind: Kind | None = None) -> str:
    """Return a local folder with the files of an artifact, their hashes checked, or the name itself."""
    found = find_named(store, name, kind)
    return found if isinstance(found, str) else str(fetch_folder(found))


def local_path(name: str) -> Path | None:
    """Return the local path that a name stands for; None for an artifact, a URI or a hub id.

    A name is a path where one exists, or when it begins with `/`, `.` or `~`.
    """
    if not name or Ref.looks_like(name):
        return None
    path = Path(name).expanduser()
    return path if path.exists() or name.startswith(("/", ".", "~")) else None
