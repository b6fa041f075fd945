"""Opens MLflow runs of stages and jobs, and finds the run that made an artifact."""

import getpass
import json
import logging
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.credentials import hide_credentials
from lisan.core.errors import ConfigError, Interrupted
from lisan.core.identity import fingerprint, flatten, to_plain
from lisan.core.stage import Stage, StageConfig, TrackedJob, TrackingConfig
from lisan.core.storage import Location
from lisan.core.versions import code_commit
from lisan.tracking.client import (
    MAX_TAG_CHARS,
    clean_key,
    connect,
    first_sentence,
    is_server,
    open_client,
    tracking_uri,
)
from lisan.tracking.recorder import MlflowRun
from lisan.tracking.system_metrics import watch_load

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import RunInfo

MAX_PARAM_CHARS = 6000


@contextmanager
def open_run(stage: Stage, config: StageConfig, parents: tuple[Artifact, ...]) -> Iterator[MlflowRun]:
    """Open the run of one stage; an unfinished run of the same artifact and config is continued.

    Raises ConfigError before the work starts when the store does not answer.
    """
    ref = Ref(stage.kind, config.name, config.version)
    folder = str(Store(config.storage.root).location(ref))
    with open_job(stage.job, str(ref), config, parents, ref=str(ref), kind=stage.kind, artifact=folder) as run:
        yield run


@contextmanager
def open_job(
    job: str, name: str, config: TrackedJob, parents: Collection[Artifact], **tags: str
) -> Iterator[MlflowRun]:
    """Open a run for a config with `storage`, `tracking` and `cluster`; it ends as FINISHED, FAILED or KILLED."""
    uri = tracking_uri(config.tracking, config.storage.root)
    if config.cluster.num_nodes > 1 and uri.startswith("sqlite"):
        raise ConfigError(
            f"tracking.uri is {uri} but cluster.num_nodes is {config.cluster.num_nodes}, and sqlite does not survive "
            "writers on several nodes; set tracking.uri to an MLflow server such as http://host:5000"
        )
    tags = {
        **_source_tags(job),
        **tags,
        "job": job,
        "fingerprint": fingerprint(config),
        "root": str(Location(config.storage.root)),
        "parents": ", ".join(str(parent.ref) for parent in parents),
        "cluster": json.dumps(to_plain(config.cluster)),
    }
    with connect(uri) as client:
        experiment_id = _open_experiment(client, uri, config.tracking.experiment, config.storage.root)
        run_id = _find_unfinished(client, experiment_id, tags)
        if run_id is None:
            run_id = client.create_run(experiment_id, run_name=name, tags=_cut(tags)).info.run_id
        _describe(client, run_id, config, _cut({**tags, **_link_parents(client, parents)}))
        start_s = client.get_run(run_id).info.start_time / 1000
    run = MlflowRun(uri, run_id, experiment_id)
    try:
        with watch_load(run.log_metrics, config.tracking.system_metrics_every_s, start_s):
            yield run
    except (KeyboardInterrupt, Interrupted):
        _end(run, "KILLED", "interrupted")
        raise
    except BaseException as error:
        _end(run, "FAILED", hide_credentials(f"{type(error).__name__}: {error}"))
        raise
    _end(run, "FINISHED", "")


def _source_tags(job: str) -> dict[str, str]:
    """Return the tags of MLflow's own columns: user, source and commit."""
    tags = {"mlflow.source.name": job, "mlflow.source.type": "JOB", "mlflow.source.git.commit": code_commit()}
    with suppress(OSError, KeyError, ImportError):
        tags["mlflow.user"] = getpass.getuser()
    return tags


def _cut(tags: Mapping[str, str]) -> dict[str, str]:
    return {key: str(value)[:MAX_TAG_CHARS] for key, value in tags.items()}


def _find_unfinished(client: "MlflowClient", experiment_id: str, tags: Mapping[str, str]) -> str | None:
    """Find the run that an interrupted job of the same config under the same root left open or failed."""
    query = f"tags.fingerprint = '{tags['fingerprint']}' and tags.job = '{tags['job']}' and status != 'FINISHED'"
    for run in client.search_runs([experiment_id], query, order_by=["attributes.start_time DESC"]):
        if run.data.tags.get("root") == tags["root"]:
            return str(run.info.run_id)
    return None


def _describe(client: "MlflowClient", run_id: str, config: TrackedJob, tags: Mapping[str, str]) -> None:
    """Log the identity of the config as parameters and the whole config as config.yaml."""
    from mlflow.entities import Param, RunTag

    client.update_run(run_id, status="RUNNING")
    flat = flatten(to_plain(config, identity_only=True))
    params = [Param(clean_key(key), hide_credentials(str(value))[:MAX_PARAM_CHARS]) for key, value in flat.items()]
    for start in range(0, len(params), 100):
        client.log_batch(run_id, params=params[start : start + 100])
    rest = {"error": "", **tags}
    client.log_batch(run_id, tags=[RunTag(key, value) for key, value in rest.items()])
    client.log_dict(run_id, json.loads(hide_credentials(json.dumps(to_plain(config)))), "config.yaml")


def _link_parents(client: "MlflowClient", parents: Collection[Artifact]) -> dict[str, str]:
    """Return tags with the run ids of the parents, and a description that links to them."""
    ids, links = {}, []
    for parent in parents:
        run = find_run(client, str(parent.ref), parent.manifest["fingerprint"], str(parent.location))
        ids[str(parent.ref)] = run.run_id if run else ""
        link = f"[{parent.ref}](#/experiments/{run.experiment_id}/runs/{run.run_id})" if run else str(parent.ref)
        links.append(link)
    note = f"made from {', '.join(links)}" if links else ""
    return {"parent_runs": json.dumps(ids), "mlflow.note.content": note}


def _end(run: MlflowRun, status: str, error: str) -> None:
    """Close a run; warn when the store does not answer, because the work itself is finished."""
    try:
        run.flush()
        client = open_client(run.uri)
        if error:
            client.set_tag(run.run_id, "error", error[:MAX_TAG_CHARS])
            client.set_tag(run.run_id, "mlflow.note.content", f"**{status.lower()}**: {error}"[:MAX_TAG_CHARS])
        client.set_terminated(run.run_id, status)
    except Exception as failure:
        logging.getLogger(__name__).warning(
            "MLflow run %s not closed as %s: %s", run.run_id, status, first_sentence(failure)
        )


def _open_experiment(client: "MlflowClient", uri: str, name: str, root: str) -> str:
    """Return the experiment's id; files of its runs go under the root unless a server keeps them."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        files = None if is_server(uri) else str(Location(root) / "mlflow" / name)
        try:
            return str(client.create_experiment(name, artifact_location=files))
        except MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise ConfigError(f"tracking.experiment {name!r} was deleted in MLflow; restore it or choose another name")
    return str(found.experiment_id)


def find_run(client: "MlflowClient", ref: str, fingerprint: str, folder: str) -> "RunInfo | None":
    """Return the latest run that made the artifact in that folder; None when this store has none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = f"tags.ref = '{ref}' and tags.fingerprint = '{fingerprint}'"
    runs = client.search_runs(experiments, query, order_by=["attributes.start_time DESC"])
    return next((run.info for run in runs if run.data.tags.get("artifact") == folder), None)


def metric_history(tracking: TrackingConfig, root: str, artifact: Artifact, key: str) -> list[tuple[int, float]]:
    """Return (step, value) of a metric from the run that made the artifact, by step; empty when there is none."""
    with connect(tracking_uri(tracking, root)) as client:
        run = find_run(client, str(artifact.ref), artifact.manifest["fingerprint"], str(artifact.location))
        points = client.get_metric_history(run.run_id, key) if run else []
        return sorted({point.step: point.value for point in points}.items())
