"""A name in a config stands for an artifact, a local folder or a hub id, everywhere in the same way."""

from pathlib import Path

import pytest

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import ConfigError
from lisan.core.references import fetch_named, find_named, local_path, parse_refs
from lisan.core.stage import StageConfig


def test_references_are_found_among_names() -> None:
    names = ("model/base@v1", None, "meta-llama/Llama-3.1-8B", "/a/folder", "tokenizer/t@v2")
    assert parse_refs(*names) == (Ref(Kind.model, "base", "v1"), Ref(Kind.tokenizer, "t", "v2"))
    with pytest.raises(ConfigError, match="expected a model, got tokenizer/t@v2"):
        parse_refs("tokenizer/t@v2", kind=Kind.model)


def test_an_artifact_is_found_by_its_reference_and_anything_else_by_its_name(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    draft = store.begin(Ref(Kind.model, "base", "v1"), StageConfig(name="base"), ())
    (draft.location / "weights.bin").write_bytes(b"w")
    draft.commit({})
    assert str(find_named(store, "model/base@v1")) == str(draft.location)
    assert (Path(fetch_named(store, "model/base@v1")) / "weights.bin").read_bytes() == b"w"
    assert fetch_named(store, "org/name", Kind.model) == "org/name"


def test_a_path_is_distinguished_from_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org").mkdir()
    assert local_path("~/org") == tmp_path / "org"
    assert local_path("org") == Path("org")
    assert local_path("./missing") == Path("missing")
    assert [local_path(name) for name in ("", "org/name", "model/base@v1", "s3://bucket/x")] == [None] * 4
