import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass

import pytest

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError, ServingError
from lisan.core.stage import ClusterConfig, Stage, StageConfig, StorageConfig, TrackingConfig, run_stage
from lisan.tracking.client import open_client, tracking_uri
from lisan.tracking.models import move_alias, register_model, resolve_alias
from lisan.tracking.recorder import LoggedCheckpoint, MlflowRun, list_checkpoints
from lisan.tracking.runs import metric_history, open_run

TRACKING = TrackingConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig(StageConfig):
    parent: str | None = None
    peak_lr: float = 0.1
    note: str = ""


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    """A fresh sqlite store to copy: MLflow takes over a second to make one."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def bare_root(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("LISAN_COMMIT", "abc123")
    return str(tmp_path)


@pytest.fixture
def root(bare_root, empty_store):
    shutil.copy(empty_store, bare_root)
    return bare_root


def make_config(root, name="base", uri=None, every_s=0.0, **fields):
    tracking = TrackingConfig(uri=uri, system_metrics_every_s=every_s)
    return StepConfig(name=name, storage=StorageConfig(root=root), tracking=tracking, **fields)


def train(config, draft, run):
    for step in (1, 2, 3):
        run.log_metrics({"loss": 1 / step}, step)
    for step in (2, 3):
        run.log_checkpoint(step, f"{config.storage.root}/checkpoints/{config.name}/step-{step}", 1000 + step, "ab" * 32)
    (draft.location / "weights.bin").write_bytes(config.name.encode())
    return {"loss": 1 / 3}


def make_stage(build=train):
    return Stage("train_cpt", Kind.model, StepConfig, lambda c: (Ref.parse(c.parent),) if c.parent else (), build)


def run_model(root, name="base", build=train, **fields):
    return run_stage(make_stage(build), make_config(root, name, **fields), open_run, say=lambda _: None)


def find_runs(root, uri=None):
    client = open_client(tracking_uri(TrackingConfig(uri=uri), root))
    return client, client.search_runs([found.experiment_id for found in client.search_experiments()])


def fail(*_):
    raise DataError("corpus/x@v1 is empty")


def test_the_store_is_sqlite_under_a_local_root_by_default(root):
    assert tracking_uri(TRACKING, root) == f"sqlite:///{root}/mlflow.db"


def test_the_configured_uri_comes_before_the_environment_and_that_before_the_root(root, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://from-environment:5000")
    assert tracking_uri(TRACKING, root) == "http://from-environment:5000"
    assert tracking_uri(TrackingConfig(uri="http://configured:5000"), root) == "http://configured:5000"


def test_an_object_store_root_needs_a_tracking_uri(root):
    with pytest.raises(ConfigError, match=r"tracking\.uri must be set when storage\.root is s3://"):
        tracking_uri(TRACKING, "s3://bucket/prefix?region=eu-west-1")


def test_several_nodes_may_not_share_a_sqlite_store(root):
    config = make_config(f"file://{root}", cluster=ClusterConfig(num_nodes=2, num_workers=2))
    with pytest.raises(ConfigError, match="sqlite does not survive"), open_run(make_stage(), config, ()):
        pass


def test_a_store_that_is_none_is_one_sentence(root):
    with pytest.raises(ConfigError, match=r"tracking\.uri nonsense://x does not work as an MLflow store: .*; start"):
        resolve_alias(TrackingConfig(uri="nonsense://x"), root, "lisan", "champion")


def test_a_password_in_the_tracking_uri_is_not_shown(root):
    with pytest.raises(ConfigError) as error:
        resolve_alias(TrackingConfig(uri="nonsense://me:secret@host/x"), root, "lisan", "champion")
    assert "secret" not in str(error.value)


def test_the_logged_config_hides_passwords_and_nothing_else(root):
    config = make_config(root, note="postgresql://me:secret@host/x", uri=f"sqlite:///{root}/other.db")
    with open_run(make_stage(), config, ()) as run:
        client = open_client(run.uri)
        with open(client.download_artifacts(run.run_id, "config.yaml")) as file:
            text = file.read()
    assert "postgresql://***@host/x" in text
    assert "secret" not in text
    assert f"root: {root}" in text


def test_a_stage_leaves_one_finished_run_that_says_everything(root):
    base = run_model(root)
    run_model(root, "cpt", parent="model/base@v1", note="x" * 9000)
    client, runs = find_runs(root)
    run = next(run for run in runs if run.info.run_name == "model/cpt@v1")
    tags = run.data.tags
    assert len(runs) == 2
    assert run.info.status == "FINISHED"
    assert (tags["job"], tags["kind"], tags["parents"]) == ("train_cpt", "model", "model/base@v1")
    parent = next(run.info for run in runs if run.info.run_name == "model/base@v1")
    assert json.loads(tags["parent_runs"]) == {"model/base@v1": parent.run_id}
    link = f"#/experiments/{parent.experiment_id}/runs/{parent.run_id}"
    assert tags["mlflow.note.content"] == f"made from [model/base@v1]({link})"
    assert tags["mlflow.source.git.commit"] == "abc123"
    assert tags["artifact"] == str(base.location).replace("base", "cpt")
    assert run.data.params["peak_lr"] == "0.1"
    assert len(run.data.params["note"]) == 6000
    assert run.data.metrics["seconds"] >= 0
    history = [(metric.step, metric.value) for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert history[:3] == [(1, 1), (2, 1 / 2), (3, 1 / 3)]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "manifest.json"}


def test_a_first_run_makes_its_store_and_keeps_its_files_under_the_root(bare_root):
    run_model(bare_root)
    _, [run] = find_runs(bare_root)
    assert run.info.artifact_uri.startswith(f"{bare_root}/mlflow/")
    assert os.path.exists(f"{bare_root}/mlflow.db")


def test_a_stage_that_raises_leaves_a_failed_run_with_the_sentence(root):
    with pytest.raises(DataError):
        run_model(root, build=fail)
    _, [run] = find_runs(root)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "DataError: corpus/x@v1 is empty"


def test_an_interrupted_stage_leaves_a_killed_run(root):
    with pytest.raises(KeyboardInterrupt), open_run(make_stage(), make_config(root), ()):
        raise KeyboardInterrupt
    _, [run] = find_runs(root)
    assert run.info.status == "KILLED"


def test_a_stage_started_again_after_a_failure_goes_on_in_the_same_run(root):
    with pytest.raises(DataError):
        run_model(root, build=fail)
    run_model(root, cluster=ClusterConfig(num_workers=0, max_failures=1))
    _, [run] = find_runs(root)
    assert run.info.status == "FINISHED"
    assert run.data.tags["error"] == ""


@pytest.mark.parametrize("other", [{"peak_lr": 0.2}, {"name": "other"}])
def test_another_config_gets_its_own_run(root, other):
    with pytest.raises(DataError):
        run_model(root, build=fail)
    with pytest.raises(DataError):
        run_model(root, **({"version": "v2"} | other), build=fail)
    assert len(find_runs(root)[1]) == 2


def test_a_finished_run_is_not_opened_again(root):
    for _ in range(2):
        with open_run(make_stage(), make_config(root), ()):
            pass
    assert len(find_runs(root)[1]) == 2


def test_checkpoints_are_found_by_step_with_where_they_are_and_their_hash(root):
    run_model(root)
    client, [run] = find_runs(root)
    found = list_checkpoints(client, run.info.run_id)
    assert [checkpoint.step for checkpoint in found] == [2, 3]
    assert found[1] == LoggedCheckpoint(step=3, uri=f"{root}/checkpoints/base/step-3", num_bytes=1003, digest="ab" * 32)


def test_a_checkpoint_is_visible_before_its_stage_ends(root):
    with open_run(make_stage(), make_config(root), ()) as run:
        run.log_checkpoint(1, "somewhere", 10, "ab")
        assert [checkpoint.step for checkpoint in list_checkpoints(open_client(run.uri), run.run_id)] == [1]


def test_a_checkpoint_shows_the_metrics_it_had(root):
    run_model(root)
    client, [run] = find_runs(root)
    [model] = [m for m in client.search_logged_models([run.info.experiment_id]) if m.params["step"] == "2"]
    assert {metric.key for metric in model.metrics} == {"loss"}
    assert model.name == "model-base-v1-step-000002"


def test_a_run_pickles_and_records_from_the_copy(root):
    with open_run(make_stage(), make_config(root), ()) as run:
        copy = pickle.loads(pickle.dumps(run))
        copy.log_metrics({"loss": 7.0}, 5)
        assert copy.flush()
    _, [found] = find_runs(root)
    assert found.data.metrics["loss"] == 7.0


def test_a_metrics_call_costs_less_than_two_milliseconds(root):
    with open_run(make_stage(), make_config(root), ()) as run:
        start = time.perf_counter()
        for step in range(200):
            run.log_metrics({"loss": 1.0, "lr": 0.1, "tokens_per_s": 3.0}, step)
        assert (time.perf_counter() - start) / 200 < 0.002


def test_the_history_of_a_metric_is_found_by_the_artifact_it_made(root):
    artifact = run_model(root)
    assert metric_history(TRACKING, root, artifact, "loss")[1:] == [(1, 1.0), (2, 1 / 2), (3, 1 / 3)]
    assert metric_history(TRACKING, root, artifact, "unknown") == []


def test_a_metric_with_a_name_that_mlflow_refuses_is_kept_under_a_near_name(root):
    with open_run(make_stage(), make_config(root), ()) as run:
        run.log_metrics({"acc@ar,en": 0.5})
    _, [found] = find_runs(root)
    assert found.data.metrics == {"acc_ar_en": 0.5}


@pytest.mark.parametrize(("every_s", "at_least"), [(0.05, 3), (600.0, 1)])
def test_a_run_knows_how_busy_the_machine_was(root, every_s, at_least):
    with open_run(make_stage(), make_config(root, every_s=every_s), ()) as run:
        run.log_checkpoint(1, "somewhere", 10, "ab")
        time.sleep(0.2)
    client, [found] = find_runs(root)
    metrics = found.data.metrics
    names = {"cpu_utilization_percentage", "system_memory_usage_megabytes", "disk_available_megabytes"}
    assert {f"system/{name}" for name in names} <= set(metrics)
    assert 0 <= metrics["system/cpu_utilization_percentage"] <= 100
    assert metrics["system/system_memory_usage_megabytes"] > 100
    history = client.get_metric_history(found.info.run_id, "system/cpu_utilization_percentage")
    assert len(history) >= at_least


def test_a_run_that_is_not_to_be_watched_is_not(root):
    with open_run(make_stage(), make_config(root), ()):
        pass
    _, [found] = find_runs(root)
    assert found.data.metrics == {}
    with pytest.raises(ConfigError, match=r"tracking\.system_metrics_every_s must be >= 0, 0 for none, got -1"):
        TrackingConfig(system_metrics_every_s=-1)


def test_a_tracker_that_is_away_does_not_raise_into_the_work(monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = MlflowRun("http://127.0.0.1:9", "run", "1")
    run.log_metrics({"loss": 1.0}, 1)
    run.log_checkpoint(1, "somewhere", 10, "ab")
    run.log_file("x.txt", b"x")
    assert not run.flush(5)
    assert "does not answer" in caplog.text


def test_a_registered_version_names_the_chain_of_checkpoints_it_came_from(root):
    run_model(root)
    artifact = run_model(root, "cpt", parent="model/base@v1")
    version = register_model(TRACKING, root, "lisan", artifact)
    chain = json.loads(version.tags["checkpoints"])
    assert (version.ref, version.uri, version.version) == ("model/cpt@v1", str(artifact.location), "1")
    assert [(link["ref"], link["step"], link["digest"]) for link in chain] == [
        ("model/cpt@v1", 3, "ab" * 32),
        ("model/base@v1", 3, "ab" * 32),
    ]
    assert list(json.loads(version.tags["lineage"])) == ["model/base@v1"]


def test_a_model_is_registered_although_a_parent_was_deleted(root):
    base = run_model(root)
    artifact = run_model(root, "cpt", parent="model/base@v1")
    base.location.delete()
    version = register_model(TRACKING, root, "lisan", artifact)
    assert "model/base@v1" in version.tags["lineage"]


def test_registering_the_same_artifact_again_returns_its_version(root):
    artifact = run_model(root)
    first = register_model(TRACKING, root, "lisan", artifact)
    assert register_model(TRACKING, root, "lisan", artifact) == first


def test_other_weights_under_the_same_ref_become_another_version(root):
    first = register_model(TRACKING, root, "lisan", run_model(root))
    Store(root).location(Ref.parse("model/base@v1")).delete()

    def train_otherwise(config, draft, run):
        (draft.location / "weights.bin").write_bytes(b"other")
        return {}

    second = register_model(TRACKING, root, "lisan", run_model(root, build=train_otherwise))
    assert (first.version, second.version) == ("1", "2")


def test_an_alias_resolves_to_the_version_it_was_moved_to(root):
    for name in ("base", "next"):
        version = register_model(TRACKING, root, "lisan", run_model(root, name))
        assert move_alias(TRACKING, root, "lisan", "champion", version.version).aliases == ("champion",)
    found = resolve_alias(TRACKING, root, "lisan", "champion")
    assert (found.ref, found.version, found.aliases) == ("model/next@v1", "2", ("champion",))


def test_an_unknown_alias_is_a_sentence_with_the_aliases_there_are(root):
    version = register_model(TRACKING, root, "lisan", run_model(root))
    move_alias(TRACKING, root, "lisan", "candidate", version.version)
    with pytest.raises(ServingError, match=r"'lisan' has no alias 'champion'.*candidate -> 1"):
        resolve_alias(TRACKING, root, "lisan", "champion")


def test_an_unknown_model_is_a_sentence_with_the_models_there_are(root):
    register_model(TRACKING, root, "lisan", run_model(root))
    with pytest.raises(ServingError, match=r"named 'lisam' \(registered: lisan\)"):
        resolve_alias(TRACKING, root, "lisam", "champion")


@pytest.fixture
def server(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
        "--backend-store-uri",
        f"sqlite:///{tmp_path}/server.db",
        "--artifacts-destination",
        f"{tmp_path}/served",
    ]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    uri = f"http://127.0.0.1:{port}"
    try:
        wait_until_healthy(uri, process)
        yield uri
    finally:
        os.killpg(process.pid, 15)
        process.wait(20)


def wait_until_healthy(uri, process):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{uri}/health", timeout=2)
            return
        except OSError:
            time.sleep(0.3)
    raise RuntimeError("the MLflow server did not start")


@pytest.mark.ray
def test_runs_files_checkpoints_and_models_of_a_local_root_go_through_a_real_server(bare_root, server):
    root = bare_root
    tracking = TrackingConfig(uri=server)
    artifact = run_stage(make_stage(), make_config(root, uri=server), open_run, say=lambda _: None)
    client, [run] = find_runs(root, server)
    version = register_model(tracking, root, "lisan", artifact)
    move_alias(tracking, root, "lisan", "champion", version.version)
    assert run.info.status == "FINISHED"
    assert [checkpoint.step for checkpoint in list_checkpoints(client, run.info.run_id)] == [2, 3]
    assert {file.path for file in client.list_artifacts(run.info.run_id)} == {"config.yaml", "manifest.json"}
    assert resolve_alias(tracking, root, "lisan", "champion").uri == str(artifact.location)
    assert not os.path.exists(os.path.join(root, "mlflow.db"))
