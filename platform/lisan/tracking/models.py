"""Registered models: registers a model artifact, moves an alias, finds the artifact that an alias names.

Weights stay where they are: MLflow holds a pointer to them, with sizes and hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from lisan.core.artifact import PAGE, Artifact, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ServingError
from lisan.core.stage import TrackingConfig
from lisan.tracking.client import connect, is_server, tracking_uri
from lisan.tracking.recorder import list_checkpoints
from lisan.tracking.runs import find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    name: str
    version: str
    ref: str
    uri: str
    "Folder of the model artifact."
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


def register_model(
    tracking: TrackingConfig, root: str, name: str, artifact: Artifact, tags: Mapping[str, str] | None = None
) -> RegisteredVersion:
    """Register a model artifact with the chain of checkpoints it was trained from; the same artifact is registered once."""
    uri = tracking_uri(tracking, root)
    identity = {
        "ref": str(artifact.ref),
        "fingerprint": artifact.manifest["fingerprint"],
        "uri": str(artifact.location),
        "files_sha256": _files_digest(artifact),
    }
    with connect(uri) as client:
        _ensure_registered_model(client, name)
        query = f"name = '{name}' and tags.fingerprint = '{identity['fingerprint']}'"
        for version in client.search_model_versions(query):
            if identity.items() <= version.tags.items():
                return _version(client, name, version.version)
        chain = _chain(client, Store(root), artifact)
        known = {**identity, "lineage": json.dumps(_lineage(Store(root), artifact)), "checkpoints": json.dumps(chain)}
        source = identity["uri"]
        if is_server(uri) and artifact.location.is_local:
            # A server refuses a local path outside of its own folders as a source, and accepts any other scheme unchanged.
            source = f"lisan:///{artifact.ref}"
        made = client.create_model_version(
            name, source, run_id=chain[0]["run_id"], tags={**known, **(tags or {})}, description=_describe_chain(chain)
        )
        return _version(client, name, made.version)


def _ensure_registered_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _files_digest(artifact: Artifact) -> str:
    """Hash the hashes of all files but the run's page, which contains the time: builds with equal weights have equal digests."""
    files = {name: facts for name, facts in artifact.manifest["files"].items() if name != PAGE}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _lineage(store: Store, artifact: Artifact) -> dict[str, str]:
    """Return ref and mark of every ancestor, nearest first; a deleted artifact ends its branch."""
    found: dict[str, str] = {}
    queue = [artifact]
    while queue:
        for ref, mark in queue.pop(0).manifest["parents"].items():
            if ref not in found:
                found[ref] = mark
                with suppress(ArtifactError):
                    queue.append(store.read(Ref.parse(ref)))
    return found


def _chain(client: "MlflowClient", store: Store, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the last checkpoint of the model's run and of each model it was trained from, newest first."""
    marks = {str(artifact.ref): artifact.digest, **_lineage(store, artifact)}
    chain = []
    for ref, mark in marks.items():
        if Ref.parse(ref).kind in (Kind.model, Kind.adapter):
            run = find_run(client, ref, _fingerprint(store, ref, mark), str(store.location(Ref.parse(ref))))
            run_id = run.run_id if run else None
            last = list_checkpoints(client, run_id)[-1:] if run_id else []
            chain.append({"ref": ref, "fingerprint": mark, "run_id": run_id, **(asdict(last[0]) if last else {})})
    return chain


def _fingerprint(store: Store, ref: str, mark: str) -> str:
    """Return the config fingerprint of an artifact with that mark: the tag of its run."""
    with suppress(ArtifactError):
        found = store.read(Ref.parse(ref))
        return str(found.manifest["fingerprint"]) if found.digest == mark else mark
    return mark


def _describe_chain(chain: list[dict[str, Any]]) -> str:
    """Return the chain as a Markdown table for MLflow's page of the version."""
    lines = ["Trained in this order, newest first:", "", "| model | step | sha256 | checkpoint |", "|---|---|---|---|"]
    for link in chain:
        cells = link["ref"], str(link.get("step", "")), link.get("digest", "")[:12], link.get("uri", "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _version(client: "MlflowClient", name: str, version: str) -> RegisteredVersion:
    found = client.get_model_version(name, str(version))
    tags = dict(found.tags)
    return RegisteredVersion(
        name=name,
        version=str(found.version),
        ref=tags.get("ref", ""),
        uri=tags.get("uri", found.source),
        aliases=tuple(sorted(found.aliases)),
        tags=tags,
    )


def move_alias(tracking: TrackingConfig, root: str, name: str, alias: str, version: str) -> RegisteredVersion:
    """Point `name@alias` to that version."""
    with connect(tracking_uri(tracking, root)) as client:
        client.set_registered_model_alias(name, alias, version)
        return _version(client, name, version)


def resolve_alias(tracking: TrackingConfig, root: str, name: str, alias: str) -> RegisteredVersion:
    """Return the version of `name@alias`; ServingError names the models or aliases that exist."""
    with connect(tracking_uri(tracking, root)) as client:
        aliases = _aliases(client, name)
        if alias not in aliases:
            known = ", ".join(f"{key} -> {value}" for key, value in sorted(aliases.items())) or "none"
            raise ServingError(f"{name!r} has no alias {alias!r} (aliases: {known}); run promote_model alias={alias}")
        return _version(client, name, aliases[alias])


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
    raise ServingError(f"no registered model is named {name!r} (registered: {known}); run promote_model first")
