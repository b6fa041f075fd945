"""Files of an artifact that are not those its manifest lists: cut, deleted, with flipped bytes; and how often they are hashed."""

import os
import time
from pathlib import Path
from typing import Any

import pytest

from lisan.core import integrity
from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.errors import ArtifactError
from lisan.core.integrity import check_hashes, fetch_file, fetch_folder, list_files, open_file
from lisan.core.storage import Location

TEXT = Ref(Kind.tokens, "text", "v1")
SHARD = "rows/web/shard-00000.arrow"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LISAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(params=["local", "s3"])
def store(request: Any, tmp_path: Path) -> Store:
    return Store(str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket"))


def make(store: Store) -> Artifact:
    draft = store.begin(TEXT, {"seed": 1}, (), job="encode_tokens")
    (draft.location / SHARD).write_bytes(b"content")
    return draft.commit({})


def settle(root: Path) -> None:
    """Let files be as old as those of a stage that took a minute."""
    for file in root.rglob("*"):
        os.utime(file, (time.time() - 60,) * 2)


def test_a_cut_and_a_deleted_shard_are_refused_when_the_artifact_is_opened(store: Store) -> None:
    shard = make(store).location / SHARD
    shard.write_bytes(b"con")
    with pytest.raises(
        ArtifactError,
        match=r"tokens/text@v1 is damaged: .*shard-00000\.arrow has 3 bytes where 7 were written; delete .*/tokens/text/v1 "
        "and run encode_tokens again",
    ):
        store.open(TEXT)
    shard.delete()
    with pytest.raises(ArtifactError, match=r"tokens/text@v1 is damaged: .*shard-00000\.arrow is missing; delete"):
        store.find(TEXT, {"seed": 1}, ())


def test_flipped_bytes_are_refused_when_the_file_is_first_read(store: Store) -> None:
    made = make(store)
    (made.location / SHARD).write_bytes(b"cont3nt")
    store.open(TEXT)
    for read in (open_file, fetch_file):
        with pytest.raises(ArtifactError, match=r"tokens/text@v1 is damaged: .* is not what was written \(sha256 "):
            read(made.location, SHARD)
    with pytest.raises(ArtifactError, match="and run encode_tokens again"):
        fetch_folder(made.location)


def test_whole_files_are_read_as_they_are(store: Store) -> None:
    place = make(store).location
    assert open_file(place, SHARD).read() == b"content"
    assert fetch_file(place, SHARD).read_bytes() == b"content"
    assert (fetch_folder(place) / SHARD).read_bytes() == b"content"


@pytest.mark.parametrize("left", [b"", b'{"ref": "tokens/te', b"[]", b"{}", b'{"ref": "\xff"}'])
def test_half_a_manifest_is_one_sentence(left: bytes, tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    (make(store).location / "manifest.json").write_bytes(left)
    with pytest.raises(ArtifactError, match=r"manifest\.json is cut off or no manifest; delete .*/v1 and run the job"):
        store.open(TEXT)


def test_a_file_is_hashed_once_on_a_machine_until_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = make(Store(str(tmp_path))).location
    settle(tmp_path)
    hashed: list[str] = []
    hash_file = integrity.hash_file
    monkeypatch.setattr(integrity, "hash_file", lambda file: (hashed.append(file.name), hash_file(file))[1])
    for _ in range(3):
        fetch_folder(place)
        open_file(place, SHARD)
    assert hashed == ["shard-00000.arrow"]
    (place / SHARD).write_bytes(b"c0ntent")
    with pytest.raises(ArtifactError, match="is not what was written"):
        fetch_folder(place)


def test_who_writes_files_leaves_their_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = Store(str(tmp_path)).begin(TEXT, {}, ())
    (draft.location / SHARD).write_bytes(b"content")
    settle(tmp_path)
    made = draft.commit({})
    monkeypatch.setattr(integrity, "hash_file", lambda _: pytest.fail("hashed again"))
    fetch_folder(made.location)


def test_without_a_place_for_marks_files_are_hashed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("LISAN_CACHE", str(tmp_path / "file"))
    made = make(Store(str(tmp_path)))
    settle(tmp_path)
    check_hashes(list_files(made.location, made.manifest))


def test_a_folder_without_a_manifest_is_read_as_it_is(tmp_path: Path) -> None:
    place = Location(str(tmp_path))
    (place / "f").write_bytes(b"1")
    assert open_file(place, "f").read() == b"1"
    assert fetch_folder(place) == tmp_path
