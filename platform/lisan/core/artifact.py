"""Artifacts, the results that stages pass to each other.

A `Ref` is `kind/name@version`; its files lie at `<root>/<kind>/<name>/<version>/`. `manifest.json` is written last and
marks completeness: an artifact without one does not exist. People choose names and versions; the fingerprint of the
config guards against reusing a ref for another config.
"""

import hashlib
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.identity import differing_keys, fingerprint, hash_plain, keep_identity, to_plain
from lisan.core.input_digests import find_change
from lisan.core.integrity import MANIFEST, check_sizes, hash_files, list_files, read_manifest
from lisan.core.storage import Location
from lisan.core.versions import code_commit, library_versions

NO_INPUTS: Mapping[str, str] = MappingProxyType({})
DRAFT = "draft.json"
METRICS = "metrics.jsonl"
PAGE = "run.html"
"Log and page of a training run, beside its checkpoints and in its model's folder."
NOTES = (".json", ".jsonl", ".html")
"Suffixes of files beside checkpoints that hold no progress: drafts, logs, pages and lists of the launcher."


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
        """Tell whether a text is a reference and not a path or hub id: `model/base@v1` is one, `meta-llama/Llama-3.1-8B` is not."""
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
        """Counts and metrics that the stage recorded."""
        facts: dict[str, Any] = self.manifest["facts"]
        return facts

    @property
    def digest(self) -> str:
        """Hash of the config and of the folders and files that it named; children record it."""
        made: str = self.manifest["fingerprint"]
        inputs = self.manifest.get("inputs")
        return hash_plain([made, inputs]) if inputs else made

    @property
    def config(self) -> dict[str, Any]:
        config: dict[str, Any] = self.manifest["config"]
        return config


@dataclass(frozen=True)
class Draft:
    """An artifact under construction; `commit` makes it visible."""

    ref: Ref
    location: Location
    fingerprint: str
    config: dict[str, Any]
    parents: tuple[Artifact, ...]
    store: "Store"
    inputs: Mapping[str, str] = field(default_factory=dict)
    "Digests of the files outside of artifacts that the config names."
    job: str = ""
    "Job that makes it, named in messages about a damaged artifact."

    def parent(self, kind: Kind) -> Artifact:
        """Return the only parent of that kind."""
        found = [parent for parent in self.parents if parent.ref.kind is kind]
        assert len(found) == 1, (kind, [str(parent.ref) for parent in self.parents])
        return found[0]

    @property
    def parts(self) -> Location:
        """Folder for resumable parts of this config and these parents."""
        sources = sorted({**_digests(self.parents), **self.inputs}.items())
        digest = hashlib.sha256(f"{self.fingerprint} {sources}".encode()).hexdigest()[:12]
        return self.store.root / "parts" / self.ref.kind / self.ref.name / self.ref.version / digest

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
            "parents": _digests(self.parents),
            "inputs": dict(self.inputs),
            "facts": dict(facts),
            "commit": code_commit(),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "versions": library_versions(),
            "files": hash_files(self.location, sizes),
        }
        (self.location / MANIFEST).write_json(manifest)
        (self.location / DRAFT).delete()
        self.parts.delete()  # after the manifest: a job that is killed before it resumes from the parts
        return self.store.read(self.ref)


class Store:
    """All artifacts below one root."""

    def __init__(self, root: str) -> None:
        self.root = Location(root)

    def location(self, ref: Ref) -> Location:
        return self.root / ref.kind / ref.name / ref.version

    def checkpoints(self, ref: Ref) -> Location:
        """Folder of the checkpoints of a model in training, outside of the artifact."""
        return self.root / "checkpoints" / ref.name / ref.version

    def lease(self, ref: Ref) -> Location:
        """File that names the process that builds an artifact."""
        return self.root / "leases" / ref.kind / ref.name / f"{ref.version}.json"

    def versions(self, kind: Kind, name: str) -> list[str]:
        return [folder.name for folder in (self.root / kind / name).list() if (folder / MANIFEST).exists()]

    def names(self, kind: Kind) -> list[str]:
        return [folder.name for folder in (self.root / kind).list() if self.versions(kind, folder.name)]

    def open(self, ref: Ref) -> Artifact:
        """Open a finished artifact and check the sizes of its files; ArtifactError names a file that is cut off or missing."""
        artifact = self.read(ref)
        check_sizes(list_files(artifact.location, artifact.manifest))
        return artifact

    def read(self, ref: Ref) -> Artifact:
        """Open a finished artifact without checking its files; ArtifactError lists the versions or names that exist."""
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
        self, ref: Ref, config: object, parents: Iterable[Artifact], inputs: Mapping[str, str] = NO_INPUTS
    ) -> Artifact | None:
        """Return the artifact, or None when it does not exist; ArtifactError when config, parents or inputs differ."""
        location = self.location(ref)
        if not (location / MANIFEST).exists():
            return None
        artifact = self.open(ref)
        if keys := _differing_identity(artifact.manifest, config):
            raise ArtifactError(f"{ref} exists with another config ({keys}); bump the version to keep both")
        for parent in parents:
            recorded = artifact.manifest["parents"].get(str(parent.ref))
            if recorded != parent.digest:
                raise ArtifactError(f"{ref} was made from another {parent.ref}; bump the version, or delete {location}")
        if changed := find_change(artifact.manifest.get("inputs"), inputs):
            raise ArtifactError(
                f"{ref} was made before {changed} changed; bump the version to keep both, or delete {location}"
            )
        return artifact

    def begin(
        self,
        ref: Ref,
        config: object,
        parents: tuple[Artifact, ...],
        inputs: Mapping[str, str] = NO_INPUTS,
        job: str = "",
    ) -> Draft:
        """Start an artifact. Leftovers of an interrupted run are deleted, except checkpoints of the same config."""
        draft = replace(self.check_begun(ref, config, parents, inputs), job=job)
        started = {"fingerprint": draft.fingerprint, "config": draft.config}
        if ref.kind in (Kind.model, Kind.adapter):
            (self.checkpoints(ref) / DRAFT).write_json(
                {**started, "parents": _digests(parents), "inputs": dict(inputs)}
            )
        draft.location.delete()
        (draft.location / DRAFT).write_json(started)
        return draft

    def check_begun(
        self, ref: Ref, config: object, parents: tuple[Artifact, ...], inputs: Mapping[str, str] = NO_INPUTS
    ) -> Draft:
        """Return the draft that `begin` would start, without writing; ArtifactError for checkpoints of another config."""
        plain = to_plain(config, identity_only=True)
        draft = Draft(ref, self.location(ref), fingerprint(config), plain, parents, self, dict(inputs))
        checkpoints = self.checkpoints(ref)
        if ref.kind in (Kind.model, Kind.adapter) and (checkpoints / DRAFT).exists() and _has_progress(checkpoints):
            started = read_draft(checkpoints)
            if keys := _differing_identity(started, config):
                raise ArtifactError(
                    f"{ref} is unfinished, with checkpoints of another config ({keys}); "
                    f"finish it, bump the version, or delete {checkpoints}"
                )
            digests = _digests(parents)
            changed = find_change(started.get("parents"), digests) or find_change(started.get("inputs"), inputs)
            if changed is not None:
                raise ArtifactError(
                    f"{ref} is unfinished, with checkpoints made from another {changed}; bump the version, or delete "
                    f"{checkpoints}"
                )
        return draft


def _differing_identity(recorded: Mapping[str, Any], config: object) -> str:
    """Name the keys in which a config differs from the recorded one; empty when there are none.

    Fields that an older version counted as identity, and this one does not, are left out.
    """
    now, before = fingerprint(config), keep_identity(recorded["config"], config)
    if now in (recorded["fingerprint"], hash_plain(before)):
        return ""
    return differing_keys(before, to_plain(config, identity_only=True))


def read_draft(checkpoints: Location) -> dict[str, Any]:
    """Return the config and parents that a run started with; ArtifactError when the file is cut off."""
    try:
        started: dict[str, Any] = (checkpoints / DRAFT).read_json()
        _ = started["fingerprint"], started["config"]
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(
            f"{checkpoints / DRAFT}, which describes the checkpoints beside it, is cut off; delete {checkpoints}"
        ) from error
    return started


def _has_progress(checkpoints: Location) -> bool:
    # A file that is being written has `.part` behind its name.
    names = [entry.name.removesuffix(".part") for entry in checkpoints.list()]
    return any(not name.startswith(".") and not name.endswith(NOTES) for name in names)


def _digests(parents: Iterable[Artifact]) -> dict[str, str]:
    return {str(parent.ref): parent.digest for parent in parents}
