"""MLflow, and the only file that knows it: a run for every job, its checkpoints, registered models and their aliases.

In: configs, metrics, checkpoints as they are committed, finished artifacts. Out: runs, registered versions, the
artifact that an alias names. Always: weights stay where they are and MLflow keeps a pointer with sizes and hashes; what
a worker records never slows or stops its training. The pipeline opens runs, `serve.promote` registers models and moves
aliases, `serve.app` resolves them.
"""

import getpass
import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from lisan.core.artifact import PAGE, Artifact, Kind, Ref, Store, code_commit
from lisan.core.credentials import hide_credentials
from lisan.core.errors import ArtifactError, ConfigError, Interrupted, LisanError, ServingError
from lisan.core.identity import fingerprint, flatten, to_plain
from lisan.core.stage import Stage, TrackingConfig
from lisan.core.storage import Location
from lisan.tracking.background import Outbox
from lisan.tracking.system_metrics import watch_load

MAX_PARAM_CHARS = 6000
MAX_TAG_CHARS = 8000
FLUSH_S = 30.0
CHECKPOINT_FLUSH_S = 5.0
PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
"Answers that the same request would get again."
STORE_LIBRARIES = ("mlflow.", "requests.", "urllib3.", "sqlalchemy.")
"Whose errors mean that the tracking store is away or not one."


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """A committed training state: where it is, not what is in it."""

    step: int
    uri: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class RegisteredVersion:
    name: str
    version: str
    ref: str
    uri: str
    "Folder of the model artifact."
    aliases: tuple[str, ...]
    tags: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class _Metric:
    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Tag:
    key: str
    value: str


_Entry = _Metric | Checkpoint | _File | _Tag


def tracking_uri(tracking: TrackingConfig, root: str) -> str:
    """Return the MLflow tracking URI: the configured one, MLFLOW_TRACKING_URI, or else sqlite under a local root."""
    named = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    place = Location(root)
    if not place.is_local:
        raise ConfigError(
            f"tracking.uri must be set when storage.root is {root}, because sqlite needs a local disk; "
            "set it or MLFLOW_TRACKING_URI to an MLflow server such as http://host:5000"
        )
    return f"sqlite:///{place.full_path}/mlflow.db"


@lru_cache(maxsize=8)
def _client(uri: str) -> Any:
    """Open the store behind `uri`, quietly; the first call imports MLflow, which takes about a second."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow's own seven retries with backoff hold a caller for minutes when the server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"tracking.uri {uri} cannot be opened: no folder {folder} ({error.strerror}); choose another one"
            ) from error
    return MlflowClient(uri, uri)


@contextmanager
def _reaching(uri: str) -> Iterator[Any]:
    """Yield the client of `uri`; what MLflow refuses or cannot reach becomes one ConfigError sentence."""
    try:
        yield _client(uri)
    except LisanError:
        raise
    except Exception as error:
        if not (isinstance(error, ImportError) or type(error).__module__.startswith(STORE_LIBRARIES)):
            raise
        raise ConfigError(
            f"tracking.uri {hide_credentials(uri)} does not work as an MLflow store: {_reason(error)}; "
            "start the server, or set tracking.uri or MLFLOW_TRACKING_URI to one that answers"
        ) from error


def _reason(error: Exception) -> str:
    """Keep the first sentence of what MLflow says; of a server that is away it says a paragraph."""
    text = hide_credentials(" ".join(str(error).split())) or type(error).__name__
    return "it does not answer" if "Max retries exceeded" in text else text.split(". ")[0][:300]


def _is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def _experiment(client: Any, uri: str, name: str, root: str) -> str:
    """Return the experiment's id; files of its runs go under the root unless a server keeps them."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        files = None if _is_server(uri) else str(Location(root) / "mlflow" / name)
        try:
            return str(client.create_experiment(name, artifact_location=files))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment {name!r} was deleted in MLflow; restore it or choose another name")
    return str(found.experiment_id)


class MlflowRun:
    """An open run, as stages and training workers see it; it pickles as two strings and an id.

    No method raises or waits for the network, except that a checkpoint waits up to 5 s to be seen at once.
    """

    def __init__(self, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id

    def __reduce__(self) -> tuple[type["MlflowRun"], tuple[str, str, str]]:
        return MlflowRun, (self.uri, self.run_id, self.experiment_id)

    @property
    def _outbox(self) -> Outbox[_Entry]:
        return _open_outbox(os.getpid(), self.uri, self.run_id, self.experiment_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            self._outbox.put(_Metric(_allowed_key(key), float(value), step or 0, now))

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:
        self._outbox.put(Checkpoint(step=step, uri=uri, num_bytes=num_bytes, digest=digest))
        self._outbox.flush(CHECKPOINT_FLUSH_S)

    def log_file(self, name: str, content: bytes) -> None:
        self._outbox.put(_File(name, content))

    def log_tag(self, key: str, value: str) -> None:
        self._outbox.put(_Tag(key, value[:MAX_TAG_CHARS]))

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until MLflow has everything recorded in this process; False when it does not by then."""
        return self._outbox.flush(timeout_s)


@lru_cache(maxsize=64)
def _open_outbox(_pid: int, uri: str, run_id: str, experiment_id: str) -> Outbox[_Entry]:
    """One outbox for all copies of a run in a process; a forked process gets its own."""
    import atexit

    outbox: Outbox[_Entry] = Outbox(_Sender(uri, run_id, experiment_id).send)
    atexit.register(outbox.flush, CHECKPOINT_FLUSH_S)
    return outbox


def _allowed_key(key: str) -> str:
    return re.sub(r"[^\w.\-: /]", "_", key)[:250]


class _Sender:
    """The far end of the outbox: runs in its thread and speaks to MLflow."""

    def __init__(self, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id
        self._latest: dict[str, _Metric] = {}

    def send(self, entries: list[_Entry]) -> None:
        with _reaching(self.uri) as client:
            self._send(client, entries)

    def _send(self, client: Any, entries: list[_Entry]) -> None:
        metrics = [entry for entry in entries if isinstance(entry, _Metric)]
        for start in range(0, len(metrics), 1000):
            self._accepted(self._send_metrics, client, metrics[start : start + 1000])
        for entry in entries:
            if isinstance(entry, Checkpoint):
                self._accepted(self._send_checkpoint, client, entry)
            elif isinstance(entry, _File):
                self._accepted(self._send_file, client, entry)
            elif isinstance(entry, _Tag):
                self._accepted(self._send_tag, client, entry)

    def _accepted(self, send: Any, client: Any, what: Any) -> None:
        """Send; drop with a warning what MLflow will never take, let everything else be tried again."""
        from mlflow.exceptions import MlflowException

        try:
            send(client, what)
        except (MlflowException, ImportError, PermissionError) as error:
            if isinstance(error, MlflowException) and error.error_code not in PERMANENT:
                raise
            logging.getLogger(__name__).warning("MLflow refuses part of run %s: %s", self.run_id, _reason(error))

    def _send_metrics(self, client: Any, metrics: list[_Metric]) -> None:
        self._latest.update({metric.key: metric for metric in metrics if not metric.key.startswith("system/")})
        client.log_batch(self.run_id, metrics=[self._entity(metric) for metric in metrics])

    def _entity(self, metric: _Metric, model_id: str | None = None) -> Any:
        from mlflow.entities import Metric

        return Metric(metric.key, metric.value, metric.timestamp_ms, metric.step, model_id=model_id, run_id=self.run_id)

    def _send_checkpoint(self, client: Any, checkpoint: Checkpoint) -> None:
        """Log a model without files: MLflow's Models tab then lists every checkpoint with the metrics it had."""
        from mlflow.entities import LoggedModelOutput

        if checkpoint in _checkpoints(client, self.run_id):
            return  # a run that goes on tells of the last one again
        run_name = client.get_run(self.run_id).info.run_name
        facts = {key: str(value) for key, value in asdict(checkpoint).items()}
        model = client.create_logged_model(
            self.experiment_id,
            name=re.sub(r"[^\w-]+", "-", f"{run_name}-step-{checkpoint.step:06d}"),
            source_run_id=self.run_id,
            params=facts,
            tags={"mlflow.model.isExternal": "true"},
            model_type="checkpoint",
        )
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
        if self._latest:
            client.log_batch(self.run_id, metrics=[self._entity(m, model.model_id) for m in self._latest.values()])

    def _send_tag(self, client: Any, tag: _Tag) -> None:
        client.set_tag(self.run_id, tag.key, tag.value)

    def _send_file(self, client: Any, file: _File) -> None:
        folder, _, name = file.name.rpartition("/")
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / name
            path.write_bytes(file.content)
            client.log_artifact(self.run_id, str(path), folder or None)


@contextmanager
def open_run(stage: Stage, config: Any, parents: tuple[Artifact, ...]) -> Iterator[MlflowRun]:
    """Open the run of one stage; an unfinished run of the same artifact and config goes on instead.

    Raises ConfigError when the store cannot be reached: better before the work than after it.
    """
    ref = Ref(stage.kind, config.name, config.version)
    place = str(Store(config.storage.root).location(ref))
    with open_job(stage.job, str(ref), config, parents, ref=str(ref), kind=stage.kind, artifact=place) as run:
        yield run


@contextmanager
def open_job(job: str, name: str, config: Any, parents: Collection[Artifact], **tags: str) -> Iterator[MlflowRun]:
    """Open a run for anything with a config that says where it is tracked; it ends as FINISHED, FAILED or KILLED."""
    uri = tracking_uri(config.tracking, config.storage.root)
    if config.cluster.num_nodes > 1 and uri.startswith("sqlite"):
        raise ConfigError(
            f"tracking.uri is {uri} but cluster.num_nodes is {config.cluster.num_nodes}, and sqlite does not survive "
            "writers on several nodes; set tracking.uri to an MLflow server such as http://host:5000"
        )
    tags = {
        **_origin(job),
        **tags,
        "job": job,
        "fingerprint": fingerprint(config),
        "root": str(Location(config.storage.root)),
        "parents": ", ".join(str(parent.ref) for parent in parents),
        "cluster": json.dumps(to_plain(config.cluster)),
    }
    with _reaching(uri) as client:
        experiment_id = _experiment(client, uri, config.tracking.experiment, config.storage.root)
        run_id = _unfinished(client, experiment_id, tags)
        if run_id is None:
            run_id = client.create_run(experiment_id, run_name=name, tags=_cut(tags)).info.run_id
        _describe(client, run_id, config, _cut({**tags, **_link_parents(client, parents)}))
        begun = client.get_run(run_id).info.start_time / 1000
    run = MlflowRun(uri, run_id, experiment_id)
    try:
        with watch_load(run.log_metrics, config.tracking.system_metrics_every_s, begun):
            yield run
    except (KeyboardInterrupt, Interrupted):
        _end(run, "KILLED", "interrupted")
        raise
    except BaseException as error:
        _end(run, "FAILED", hide_credentials(f"{type(error).__name__}: {error}"))
        raise
    _end(run, "FINISHED", "")


def _origin(job: str) -> dict[str, str]:
    """Tags that MLflow's own columns show: who, what, which commit."""
    tags = {"mlflow.source.name": job, "mlflow.source.type": "JOB", "mlflow.source.git.commit": code_commit()}
    with suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value)[:MAX_TAG_CHARS] for key, value in tags.items()}


def _unfinished(client: Any, experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Find the run that an interrupted job of the same config under the same root left open or failed."""
    query = f"tags.fingerprint = '{tags['fingerprint']}' and tags.job = '{tags['job']}' and status != 'FINISHED'"
    for run in client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"]):
        if run.data.tags.get("root") == tags["root"]:
            return str(run.info.run_id)
    return None


def _describe(client: Any, run_id: str, config: Any, tags: Mapping[str, str]) -> None:
    """Log the config: identity as parameters, the whole of it as config.yaml."""
    from mlflow.entities import Param, RunTag

    client.update_run(run_id, status="RUNNING")
    flat = flatten(to_plain(config, identity_only=True))
    params = [Param(_allowed_key(key), hide_credentials(str(value))[:MAX_PARAM_CHARS]) for key, value in flat.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    rest = {"error": "", **tags}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in rest.items()])
    client.log_dict(run_id, json.loads(hide_credentials(json.dumps(to_plain(config)))), "config.yaml")


def _link_parents(client: Any, parents: Collection[Artifact]) -> dict[str, str]:
    """Return the tags that lead to the runs of parents: their ids, and links in the description that MLflow shows."""
    ids, links = {}, []
    for parent in parents:
        mark = parent.manifest["fingerprint"]
        run = _find_run(client, str(parent.ref), mark, str(parent.location))
        ids[str(parent.ref)] = run.run_id if run else ""
        link = f"[{parent.ref}](#/experiments/{run.experiment_id}/runs/{run.run_id})" if run else str(parent.ref)
        links.append(link)
    note = f"made from {', '.join(links)}" if links else ""
    return {"parent_runs": json.dumps(ids), "mlflow.note.content": note}


def _end(run: MlflowRun, status: str, error: str) -> None:
    """Close a run; a tracker that is away by then is worth a warning, not the loss of finished work."""
    try:
        run.flush()
        client = _client(run.uri)
        if error:
            client.set_tag(run.run_id, "error", error[:MAX_TAG_CHARS])
            client.set_tag(run.run_id, "mlflow.note.content", f"**{status.lower()}**: {error}"[:MAX_TAG_CHARS])
        client.set_terminated(run.run_id, status)
    except Exception as failure:
        logging.getLogger(__name__).warning("MLflow run %s not closed as %s: %s", run.run_id, status, _reason(failure))


def checkpoints(tracking: TrackingConfig, root: str, run_id: str) -> list[Checkpoint]:
    """Return the checkpoints that a run committed, by step."""
    with _reaching(tracking_uri(tracking, root)) as client:
        return _checkpoints(client, run_id)


def _checkpoints(client: Any, run_id: str) -> list[Checkpoint]:
    experiment_id = client.get_run(run_id).info.experiment_id
    found: dict[int, Checkpoint] = {}
    token = None
    while True:
        query = f"source_run_id = '{run_id}'"
        order = [{"field_name": "creation_timestamp", "ascending": True}]
        page = client.search_logged_models([experiment_id], query, order_by=order, page_token=token)
        for facts in (model.params for model in page if model.model_type == "checkpoint"):
            step = int(facts["step"])
            found[step] = Checkpoint(
                step=step, uri=facts["uri"], num_bytes=int(facts["num_bytes"]), digest=facts["digest"]
            )
        token = page.token
        if not token:
            return [found[step] for step in sorted(found)]


def register_model(
    tracking: TrackingConfig, root: str, name: str, artifact: Artifact, tags: Mapping[str, str] | None = None
) -> RegisteredVersion:
    """Register a model artifact and the chain of checkpoints it came from; the same artifact is registered once."""
    uri = tracking_uri(tracking, root)
    identity = {
        "ref": str(artifact.ref),
        "fingerprint": artifact.manifest["fingerprint"],
        "uri": str(artifact.location),
        "files_sha256": _files_digest(artifact),
    }
    with _reaching(uri) as client:
        _ensure_registered_model(client, name)
        query = f"name = '{name}' and tags.fingerprint = '{identity['fingerprint']}'"
        for version in client.search_model_versions(query):
            if identity.items() <= version.tags.items():
                return _version(client, name, version.version)
        chain = _chain(client, Store(root), artifact)
        known = {**identity, "lineage": json.dumps(_lineage(Store(root), artifact)), "checkpoints": json.dumps(chain)}
        source = identity["uri"]
        if _is_server(uri) and artifact.location.is_local:
            # A server takes no local path outside of its own folders as a source, but any other scheme as it stands.
            source = f"lisan:///{artifact.ref}"
        made = client.create_model_version(
            name, source, run_id=chain[0]["run_id"], tags={**known, **(tags or {})}, description=_describe_chain(chain)
        )
        return _version(client, name, made.version)


def _ensure_registered_model(client: Any, name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _files_digest(artifact: Artifact) -> str:
    """Hash the hashes of all files but the run's page, which tells the time: two builds differ here when their weights do."""
    import hashlib

    files = {name: facts for name, facts in artifact.manifest["files"].items() if name != PAGE}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _lineage(store: Store, artifact: Artifact) -> dict[str, str]:
    """Return the marks of everything the artifact was made from, nearest first; what was deleted ends its branch."""
    found: dict[str, str] = {}
    queue = [artifact]
    while queue:
        for ref, mark in queue.pop(0).manifest["parents"].items():
            if ref not in found:
                found[ref] = mark
                with suppress(ArtifactError):
                    queue.append(store.read(Ref.parse(ref)))
    return found


def _chain(client: Any, store: Store, artifact: Artifact) -> list[dict[str, Any]]:
    """Return the last checkpoint of the model's own run and of each model it was trained from, newest first."""
    marks = {str(artifact.ref): artifact.mark, **_lineage(store, artifact)}
    chain = []
    for ref, mark in marks.items():
        if Ref.parse(ref).kind in (Kind.model, Kind.adapter):
            run = _find_run(client, ref, _fingerprint(store, ref, mark), str(store.location(Ref.parse(ref))))
            run_id = run.run_id if run else None
            last = _checkpoints(client, run_id)[-1:] if run_id else []
            chain.append({"ref": ref, "fingerprint": mark, "run_id": run_id, **(asdict(last[0]) if last else {})})
    return chain


def _fingerprint(store: Store, ref: str, mark: str) -> str:
    """Return the fingerprint of the config of an artifact with that mark, which its run has as a tag."""
    with suppress(ArtifactError):
        found = store.read(Ref.parse(ref))
        return str(found.manifest["fingerprint"]) if found.mark == mark else mark
    return mark


def _find_run(client: Any, ref: str, mark: str, place: str) -> Any:
    """Return `run_id` and `experiment_id` of the latest run that made this artifact there; None under another tracking store."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"tags.ref = '{ref}' and tags.fingerprint = '{mark}'"
    runs = client.search_runs(experiments, query, order_by=["attributes.start_time DESC"])
    return next((run.info for run in runs if run.data.tags.get("artifact") == place), None)


def metric_history(tracking: TrackingConfig, root: str, artifact: Artifact, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric from the run that made the artifact, by step; empty when nothing recorded it."""
    with _reaching(tracking_uri(tracking, root)) as client:
        mark = artifact.manifest["fingerprint"]
        run = _find_run(client, str(artifact.ref), mark, str(artifact.location))
        points = client.get_metric_history(run.run_id, key) if run else []
        return sorted({point.step: point.value for point in points}.items())


def _describe_chain(chain: list[dict[str, Any]]) -> str:
    """Show the chain as the Markdown table that MLflow's page of the version renders."""
    lines = ["Trained in this order, newest first:", "", "| model | step | sha256 | checkpoint |", "|---|---|---|---|"]
    for link in chain:
        cells = link["ref"], str(link.get("step", "")), link.get("digest", "")[:12], link.get("uri", "")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _version(client: Any, name: str, version: str) -> RegisteredVersion:
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
    """Let `name@alias` mean that version from now on."""
    with _reaching(tracking_uri(tracking, root)) as client:
        client.set_registered_model_alias(name, alias, version)
        return _version(client, name, version)


def resolve_alias(tracking: TrackingConfig, root: str, name: str, alias: str) -> RegisteredVersion:
    """Return the version that `name@alias` means; a ServingError names the models or aliases that exist."""
    with _reaching(tracking_uri(tracking, root)) as client:
        aliases = _aliases(client, name)
        if alias not in aliases:
            known = ", ".join(f"{key} -> {value}" for key, value in sorted(aliases.items())) or "none"
            raise ServingError(f"{name!r} has no alias {alias!r} (aliases: {known}); run promote_model alias={alias}")
        return _version(client, name, aliases[alias])


def _aliases(client: Any, name: str) -> dict[str, str]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    known = ", ".join(sorted(model.name for model in client.search_registered_models())) or "none"
    raise ServingError(f"no registered model is named {name!r} (registered: {known}); run promote_model first")
