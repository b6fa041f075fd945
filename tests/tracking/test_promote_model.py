import json
import math
import pickle
import re
import shutil
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from lisan.core.artifact import Ref, Store
from lisan.core.config import load
from lisan.core.errors import ArtifactError, ConfigError, ServingError
from lisan.core.stage import StageConfig, StorageConfig, TrackingConfig
from lisan.inference.config import ServeConfig
from lisan.inference.served_model import find_served_model
from lisan.tracking.client import open_client
from lisan.tracking.models import resolve_alias
from lisan.tracking.promote_model import GateConfig, GateResult, PromoteConfig, check_gates, format_gates, promote

METRICS = {"accuracy_ar": 0.8, "bits_per_byte_en": 0.72}


@dataclass(frozen=True, kw_only=True, slots=True)
class StepConfig(StageConfig):
    peak_lr: float = 0.1


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_client(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def root(tmp_path, empty_store, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path)
    return str(tmp_path)


def commit(root, ref, facts, parents=(), **fields):
    """Write an artifact as a stage would."""
    store, ref = Store(root), Ref.parse(ref)
    config = StepConfig(name=ref.name, version=ref.version, **fields)
    draft = store.begin(ref, config, tuple(parents))
    (draft.location / "content.txt").write_bytes(str(ref).encode())
    return draft.commit(facts)


@pytest.fixture
def model(root):
    return commit(root, "model/chat@v1", {})


def make_report(root, model, ref="report/chat@v1", metrics=METRICS):
    return commit(root, ref, {"metrics": metrics}, [model])


def make_config(root, gates=None, **fields):
    fields = {"model": "model/chat@v1", "report": "report/chat@v1"} | fields
    return PromoteConfig(gates=gates or {}, storage=StorageConfig(root=root), **fields)


def run_promote(*args, **fields):
    lines = []
    return promote(make_config(*args, **fields), lines.append), "\n".join(lines)


def alias_of(root, alias="champion"):
    return resolve_alias(TrackingConfig(), root, "lisan", alias).ref


def find_runs(root):
    client = open_client(f"sqlite:///{root}/mlflow.db")
    return client, client.search_runs([found.experiment_id for found in client.search_experiments()])


def test_a_model_that_passes_its_gates_gets_the_alias(root, model):
    make_report(root, model)
    version, said = run_promote(root, {"accuracy_ar": GateConfig(min=0.7), "bits_per_byte_en": GateConfig(max=0.8)})
    assert version.aliases == ("candidate", "champion")
    assert alias_of(root) == "model/chat@v1"
    assert said.count("passed") == 2


@pytest.fixture
def far_root(bucket, server, root, monkeypatch):
    """A root whose text alone leads to another store, and has a key that is nobody's business."""
    monkeypatch.setenv("MLFLOW_S3_ENDPOINT_URL", f"http://{server}")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{root}/mlflow.db")
    return bucket.replace("s3://", "s3://me:hush@")


def promote_far(far_root):
    model = commit(far_root, "model/chat@v1", {})
    for name, content in (
        ("config.json", b'{"architectures": ["A"]}'),
        ("tokenizer.json", b""),
        ("a.safetensors", b"1"),
    ):
        (model.location / name).write_bytes(content)
    make_report(far_root, model)
    return run_promote(far_root)[0]


@pytest.mark.parametrize("path", [None, "model/chat@v1", "{uri}"])
def test_a_model_on_an_object_store_is_served_from_where_it_was_promoted(far_root, path):
    version = promote_far(far_root)
    path = path and path.format(uri=version.uri)
    found = find_served_model(ServeConfig(path=path, storage=StorageConfig(root=far_root)))
    there = pickle.loads(pickle.dumps(found)).folder.local_folder()
    assert (there / "a.safetensors").read_bytes() == b"1"
    assert "hush" not in found.source


def test_mlflow_gets_neither_key_nor_endpoint_of_a_store(far_root, root):
    version = promote_far(far_root)
    assert version.uri == far_root.partition("?")[0].replace("me:hush@", "") + "/model/chat/v1"
    client, [run] = find_runs(root)
    with open(client.download_artifacts(run.info.run_id, "config.yaml")) as file:
        assert "://***@" in file.read()
    assert b"hush" not in Path(root, "mlflow.db").read_bytes()


@pytest.fixture
def closed_store():
    """The address of a store that lets nobody in."""

    class Refusal(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(403)
            self.end_headers()

        def log_message(self, *_):
            """Keep quiet."""

    with HTTPServer(("127.0.0.1", 0), Refusal) as http:
        threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"127.0.0.1:{http.server_port}"
        http.shutdown()


def test_a_model_on_a_store_that_lets_nobody_in_is_a_sentence(far_root, closed_store):
    promote_far(far_root)
    nowhere = re.sub("endpoint_override=[^&]*", f"endpoint_override={closed_store}", far_root)
    with pytest.raises(ServingError, match=r"lisan v1 .* cannot be read at s3://.*; set storage\.root") as caught:
        find_served_model(ServeConfig(storage=StorageConfig(root=nowhere)))
    assert "\n" not in str(caught.value)


def test_a_failing_gate_is_named_with_value_and_bound_and_the_alias_stays(root, model):
    make_report(root, model)
    run_promote(root)
    worse = commit(root, "model/chat@v2", {})
    make_report(root, worse, "report/chat@v2", {"accuracy_ar": 0.61})
    with pytest.raises(ServingError, match=r"champion does not move to model/chat@v2: accuracy_ar is 0\.61 .* >= 0\.7"):
        run_promote(root, {"accuracy_ar": GateConfig(min=0.7)}, model="model/chat@v2", report="report/chat@v2")
    assert alias_of(root) == "model/chat@v1"
    assert alias_of(root, "candidate") == "model/chat@v2"


def test_a_second_promotion_changes_nothing_and_says_so(root, model):
    make_report(root, model)
    first, _ = run_promote(root)
    second, said = run_promote(root)
    assert second == first
    assert "lisan@champion already is version 1 (model/chat@v1), nothing to do" in said
    assert len(find_runs(root)[1]) == 1


def test_a_stricter_gate_is_checked_for_the_champion_too(root, model):
    make_report(root, model)
    run_promote(root)
    with pytest.raises(ServingError, match="accuracy_ar"):
        run_promote(root, {"accuracy_ar": GateConfig(min=0.9)})


def test_the_gate_table_is_kept_in_a_run(root, model):
    make_report(root, model)
    run_promote(root, {"accuracy_ar": GateConfig(min=0.7)})
    client, [run] = find_runs(root)
    with open(client.download_artifacts(run.info.run_id, "gates.json")) as file:
        kept = json.load(file)
    assert kept == [{"metric": "accuracy_ar", "value": 0.8, "bound": ">= 0.7", "passed": True}]
    assert run.data.tags["parents"] == "model/chat@v1, report/chat@v1"


def test_a_failed_promotion_is_a_failed_run(root, model):
    make_report(root, model)
    with pytest.raises(ServingError):
        run_promote(root, {"accuracy_ar": GateConfig(min=0.9)})
    _, [run] = find_runs(root)
    assert run.info.status == "FAILED"


def test_a_report_about_another_model_is_refused(root, model):
    make_report(root, commit(root, "model/other@v1", {}))
    with pytest.raises(ServingError, match=r"report/chat@v1 is about model/other@v1, not about model/chat@v1"):
        run_promote(root)


def test_a_report_about_an_earlier_build_of_the_model_is_refused(root, model):
    make_report(root, model)
    model.location.delete()
    Store(root).checkpoints(model.ref).delete()
    commit(root, "model/chat@v1", {}, peak_lr=0.2)
    with pytest.raises(ServingError, match=r"is about an earlier model/chat@v1"):
        run_promote(root)


def test_a_report_that_does_not_exist_is_a_sentence(root, model):
    with pytest.raises(ArtifactError, match="report/chat@v1 does not exist"):
        run_promote(root)


def test_a_report_without_metrics_is_a_sentence(root, model):
    make_report(root, model, metrics={})
    with pytest.raises(ServingError, match="report/chat@v1 has no metrics"):
        run_promote(root)


def test_a_gate_on_a_metric_the_report_does_not_have_names_those_it_has(root, model):
    make_report(root, model)
    with pytest.raises(ServingError, match=r"gates\.acuracy .*\(metrics: accuracy_ar, bits_per_byte_en\)"):
        run_promote(root, {"acuracy": GateConfig(min=0.7)})


def test_a_baseline_report_bounds_the_drop(root, model):
    make_report(root, model)
    make_report(root, commit(root, "model/base@v1", {}), "report/base@v1", {"accuracy_ar": 0.9})
    gates = {"accuracy_ar": GateConfig(max_drop_ratio=0.05)}
    with pytest.raises(ServingError, match=r"0\.8 but must be >= 0\.855 \(baseline 0\.9\)"):
        run_promote(root, gates, baseline="report/base@v1")


@pytest.mark.parametrize(
    ("gate", "value", "passed"),
    [
        (GateConfig(min=0.7), 0.7, True),
        (GateConfig(min=0.7), 0.699, False),
        (GateConfig(max=0.7), 0.7, True),
        (GateConfig(max=0.7), 0.701, False),
        (GateConfig(min=0.7), math.nan, False),
        (GateConfig(max=0.7), math.nan, False),
        (GateConfig(max_drop_ratio=0.1), 0.9, True),
        (GateConfig(max_drop_ratio=0.1), 0.89, False),
        (GateConfig(max_rise_ratio=0.03), 1.03, True),
        (GateConfig(max_rise_ratio=0.03), 1.04, False),
    ],
)
def test_a_bound_itself_passes_and_nan_fails(gate, value, passed):
    [result] = check_gates({"m": gate}, {"m": value}, {"m": 1.0}, "report/x@v1")
    assert result.passed is passed


def test_every_bound_of_a_gate_is_a_row_of_its_own():
    results = check_gates({"m": GateConfig(min=0, max=1)}, {"m": 2.0}, {}, "report/x@v1")
    assert [result.passed for result in results] == [True, False]


def test_the_gate_table_lines_up():
    results = [
        GateResult(metric="accuracy_ar", value=0.8, bound=">= 0.7", passed=True),
        GateResult(metric="bpb", value=1.234567, bound="<= 1 (baseline 1)", passed=False),
    ]
    assert format_gates(results).splitlines() == [
        "gate         value  bound",
        "accuracy_ar    0.8  >= 0.7             passed",
        "bpb          1.235  <= 1 (baseline 1)  FAILED",
    ]


def test_gates_load_from_a_plain_mapping():
    raw = {"model": "model/chat@v1", "report": "report/chat@v1", "gates": {"accuracy_ar": {"min": 0.7}}}
    assert load(PromoteConfig, raw).gates == {"accuracy_ar": GateConfig(min=0.7)}


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": "chat"}, "model: expected a reference"),
        ({"report": "model/chat@v1"}, "report: expected a report"),
        ({"alias": "v3"}, "alias must be"),
        ({"alias": "latest"}, "alias must be"),
        ({"name": "a/b"}, "name must be"),
        ({"baseline": "report/base@v1"}, "has no effect"),
        ({"gates": {"m": GateConfig(max_drop_ratio=0.1)}}, "gates.m compares with a baseline"),
    ],
)
def test_a_config_that_cannot_work_is_one_sentence(root, fields, sentence):
    with pytest.raises(ConfigError, match=sentence):
        make_config(root, **fields)


@pytest.mark.parametrize("bounds", [{}, {"max_drop_ratio": -0.1}, {"max_rise_ratio": math.nan}])
def test_a_gate_without_a_bound_or_with_a_negative_ratio_is_refused(bounds):
    with pytest.raises(ConfigError, match="gate"):
        GateConfig(**bounds)
