"""References, manifests and the store."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.identity import NOT_IDENTITY, differing_keys
from lisan.core.storage import Location

TEXT = Ref(Kind.corpus, "text", "v1")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path))


def make(store: Store, ref: Ref = TEXT, config: Any = None, parents: tuple[Artifact, ...] = ()) -> Artifact:
    draft = store.begin(ref, config or {"seed": 1}, parents)
    (draft.location / "a" / "f").write_bytes(b"content")
    return draft.commit({"rows": 3})


@pytest.mark.parametrize("text", ["model/a@v1", "tokens/a-b.c_d@2024-01", "report/x@1"])
def test_a_reference_reads_back_as_it_is_written(text: str) -> None:
    assert str(Ref.parse(text)) == text
    assert Ref.looks_like(text)


@pytest.mark.parametrize(
    "text",
    ["model/a", "modell/a@v1", "model/a/b@v1", "a@v1", "model/@v1", "", "model/a@", "model/-a@v1", "model/a b@v1"],
)
def test_text_that_is_no_reference_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Ref.parse(text)
    assert "\n" not in str(caught.value)


def test_a_reference_of_another_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="expected a model, got tokens/a@v1"):
        Ref.parse("tokens/a@v1", Kind.model)


@pytest.mark.parametrize(
    "text", ["meta-llama/Llama-3.1-8B", "/models/base", "./model", "org/model@main", "model/a/b@v1"]
)
def test_paths_and_hub_ids_do_not_look_like_references(text: str) -> None:
    assert not Ref.looks_like(text)


def test_a_draft_is_not_an_artifact_until_it_is_committed(store: Store) -> None:
    draft = store.begin(TEXT, {"seed": 1}, ())
    (draft.location / "f").write_bytes(b"1")
    assert store.versions(Kind.corpus, "text") == []
    assert store.find(TEXT, {"seed": 1}, ()) is None
    draft.commit({})
    assert store.versions(Kind.corpus, "text") == ["v1"]
    assert store.names(Kind.corpus) == ["text"]


def test_the_manifest_is_written_last(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    write = Location.write_bytes
    monkeypatch.setattr(
        Location, "write_bytes", lambda place, data: (written.append(place.name), write(place, data))[1]
    )
    make(store)
    assert written == ["draft.json", "f", "manifest.json"]


def test_the_manifest_holds_sizes_and_hashes_of_every_file(store: Store) -> None:
    found = make(store)
    assert found.manifest["files"] == {"a/f": {"bytes": 7, "sha256": hashlib.sha256(b"content").hexdigest()}}
    assert found.facts == {"rows": 3}
    assert found.config == {"seed": 1}
    assert not (found.location / "draft.json").exists()


def test_parents_are_recorded_with_their_fingerprints(store: Store) -> None:
    parent = make(store)
    child = make(store, Ref(Kind.tokens, "t", "v1"), parents=(parent,))
    assert child.manifest["parents"] == {"corpus/text@v1": parent.manifest["fingerprint"]}


def test_a_draft_gives_its_only_parent_of_a_kind(store: Store) -> None:
    parent = make(store)
    draft: Draft = store.begin(Ref(Kind.tokens, "t", "v1"), {}, (parent,))
    assert draft.parent(Kind.corpus) == parent


def test_a_missing_artifact_error_lists_the_existing_ones(store: Store) -> None:
    make(store)
    make(store, Ref(Kind.corpus, "text", "v2"))
    with pytest.raises(ArtifactError, match=r"^corpus/text@v3 does not exist; versions: v1, v2$"):
        store.open(Ref(Kind.corpus, "text", "v3"))
    with pytest.raises(ArtifactError, match=r"corpus/other@v1 does not exist; corpuss? under .*: text"):
        store.open(Ref(Kind.corpus, "other", "v1"))
    with pytest.raises(ArtifactError, match=r"model/m@v1 does not exist; models under .*: none"):
        store.open(Ref(Kind.model, "m", "v1"))


def test_the_same_config_finds_the_artifact_and_another_is_refused_with_its_keys(store: Store) -> None:
    made = make(store, config={"seed": 1, "optim": {"lr": 0.1}})
    assert store.find(TEXT, {"seed": 1, "optim": {"lr": 0.1}}, ()) == made
    with pytest.raises(
        ArtifactError, match=r"corpus/text@v1 exists with another config \(optim\.lr: 0\.1 -> 0\.2\); bump the version"
    ):
        store.find(TEXT, {"seed": 1, "optim": {"lr": 0.2}}, ())


@dataclass(frozen=True)
class Recipe:
    seed: int = 1
    log_every: int = field(default=10, metadata=NOT_IDENTITY)


def test_fields_that_are_not_identity_may_change(store: Store) -> None:
    made = make(store, config=Recipe())
    assert store.find(TEXT, Recipe(log_every=1), ()) == made
    with pytest.raises(ArtifactError, match=r"exists with another config \(seed: 1 -> 2\)"):
        store.find(TEXT, Recipe(seed=2, log_every=1), ())


def test_an_artifact_with_an_older_fingerprint_of_more_fields_is_found(store: Store) -> None:
    made = make(store, config={"seed": 1, "log_every": 10})
    assert store.find(TEXT, Recipe(log_every=1), ()) == made
    with pytest.raises(ArtifactError, match=r"exists with another config \(seed: 1 -> 2\)"):
        store.find(TEXT, Recipe(seed=2), ())


@pytest.mark.parametrize("begun_with", [Recipe(), {"seed": 1, "log_every": 10}], ids=["new", "old"])
def test_checkpoints_are_gone_on_from_when_only_how_it_runs_has_changed(store: Store, begun_with: Any) -> None:
    ref = Ref(Kind.model, "m", "v1")
    store.begin(ref, begun_with, ())
    (store.checkpoints(ref) / "step_00000001" / "checkpoint.json").write_json({})
    store.begin(ref, Recipe(log_every=1), ())
    with pytest.raises(ArtifactError, match=r"checkpoints of another config \(seed: 1 -> 2\)"):
        store.begin(ref, Recipe(seed=2), ())


def test_a_parent_made_anew_is_noticed(store: Store) -> None:
    parent, other = make(store), make(store, Ref(Kind.corpus, "text", "v2"), config={"seed": 2})
    ref = Ref(Kind.tokens, "t", "v1")
    make(store, ref, {"x": 1}, (parent,))
    changed = Artifact(parent.ref, parent.location, other.manifest)
    with pytest.raises(ArtifactError, match="tokens/t@v1 was made from another corpus/text@v1"):
        store.find(ref, {"x": 1}, (changed,))


def test_beginning_removes_leftovers_of_a_crash(store: Store) -> None:
    draft = store.begin(TEXT, {"seed": 1}, ())
    (draft.location / "half").write_bytes(b"1")
    draft = store.begin(TEXT, {"seed": 2}, ())
    assert not (draft.location / "half").exists()


def test_checkpoints_made_from_another_parent_are_refused(store: Store) -> None:
    parent, other = make(store), make(store, Ref(Kind.corpus, "text", "v2"), config={"seed": 2})
    ref = Ref(Kind.model, "m", "v1")
    store.begin(ref, {"x": 1}, (parent,))
    changed = Artifact(parent.ref, parent.location, other.manifest)
    store.begin(ref, {"x": 1}, (changed,))  # nothing was made of it yet
    (store.checkpoints(ref) / "step_00000010" / "f").write_bytes(b"1")
    with pytest.raises(
        ArtifactError, match=r"model/m@v1 is unfinished, with checkpoints made from another corpus/text@v1"
    ):
        store.begin(ref, {"x": 1}, (parent,))
    store.begin(ref, {"x": 1}, (changed,))


def test_checkpoints_of_a_model_outlive_a_crash_but_only_for_the_same_config(store: Store) -> None:
    ref = Ref(Kind.model, "m", "v1")
    store.begin(ref, {"seed": 1}, ())
    (store.checkpoints(ref) / "step_00000010" / "f").write_bytes(b"1")
    store.begin(ref, {"seed": 1}, ())
    assert (store.checkpoints(ref) / "step_00000010" / "f").exists()
    with pytest.raises(
        ArtifactError, match=r"model/m@v1 is unfinished, with checkpoints of another config \(seed: 1 -> 2\)"
    ):
        store.begin(ref, {"seed": 2}, ())


def test_differing_keys_name_five_and_count_the_rest() -> None:
    assert differing_keys({"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3}}) == "b.c: 2 -> 3"
    assert differing_keys({"a": 1, "c": 0}, {"b": 2, "c": 0}) == "a: 1 -> None, b: None -> 2"
    many = {str(index): index for index in range(8)}
    assert differing_keys(many, {"0": 0}).endswith("and 2 more")


@pytest.mark.parametrize(
    ("left", "is_progress"),
    [
        (".validate_storage_marker", False),
        ("checkpoint_manager_snapshot.json", False),
        ("metrics.jsonl", False),
        ("draft.json.part", False),
        ("step_00000003/shard", True),
        ("reference.parquet", True),
    ],
)
def test_files_of_a_launcher_are_no_progress(left: str, is_progress: bool, store: Store) -> None:
    """A run that found no memory at its first step may be corrected under its name."""
    ref = Ref(Kind.model, "m", "v1")
    store.begin(ref, {"micro_rows": 8}, ())
    (store.checkpoints(ref) / left).write_bytes(b"")
    if is_progress:
        with pytest.raises(ArtifactError, match=r"with checkpoints of another config \(micro_rows: 8 -> 4\)"):
            store.begin(ref, {"micro_rows": 4}, ())
    else:
        store.begin(ref, {"micro_rows": 4}, ())
