"""What workers on a cluster learn of the driver, and what fails in one of them, as users read it; no Ray is started here."""

import json
import pickle
from typing import Any

import pytest

from lisan.cluster.ray import answer, connect, in_one_sentence, reason_of, runtime_env
from lisan.core.errors import ClusterError, DataError
from lisan.core.stage import ClusterConfig
from lisan.core.versions import code_commit

ADDRESS = "10.0.0.1:6379"


def ask(function: Any, item: Any = 1) -> Any:
    return pickle.loads(answer({"item": pickle.dumps(item)}, function)["result"])


def test_a_result_travels_as_it_is() -> None:
    assert ask(lambda item: (item, 2)) == (1, 2)


def test_a_lisan_error_keeps_its_type_and_message() -> None:
    def fail(_: int) -> None:
        raise DataError("the data are bad")

    failure = ask(fail)
    assert (type(failure), str(failure)) == (DataError, "the data are bad")


@pytest.mark.parametrize(
    ("message", "said"), [("out of memory\nTried", "RuntimeError: out of memory"), ("", "RuntimeError: no message")]
)
def test_anything_else_travels_as_one_sentence_with_its_trace_beside_it(message: str, said: str) -> None:
    def fail(_: int) -> None:
        raise RuntimeError(message)

    failure = ask(fail)
    assert (type(failure), str(failure)) == (ClusterError, said)
    assert "Traceback" in failure.__notes__[0]


def test_a_failure_of_ray_is_one_sentence_and_ours_stays() -> None:
    with pytest.raises(ClusterError, match=r"^OSError: the last line$"), in_one_sentence():
        raise OSError("a trace\n\nthe last line\n")
    with pytest.raises(DataError, match=r"^ours$"), in_one_sentence():
        raise DataError("ours")


def test_a_lisan_error_is_found_inside_of_an_error_of_ray() -> None:
    inner, outer = RuntimeError("Ray's"), RuntimeError("Ray Train's")
    inner.__cause__ = DataError("ours")
    outer.worker_failures = {0: inner}  # type: ignore[attr-defined]
    assert reason_of(outer) == "ours"


def test_workers_know_the_commit_and_how_to_reach_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISAN_COMMIT", raising=False)
    secrets = {f"MLFLOW_TRACKING_{name}": name.lower() for name in ("URI", "USERNAME", "PASSWORD", "TOKEN")}
    for name, value in {**secrets, "LISAN_DATA": "/data", "OTHER": "1"}.items():
        monkeypatch.setenv(name, value)
    passed = runtime_env(ADDRESS)["env_vars"]
    assert passed.items() >= {**secrets, "LISAN_DATA": "/data", "LISAN_COMMIT": code_commit()}.items()  # type: ignore[attr-defined]
    assert "OTHER" not in passed  # type: ignore[operator]


def test_variables_of_a_submitted_job_are_not_passed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to merge two environments that both have a variable."""
    from ray.runtime_env.runtime_env import _merge_runtime_env

    submitted = {"env_vars": {"LISAN_COMMIT": "abc", "MLFLOW_TRACKING_URI": "http://host"}}
    for name, value in submitted["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert _merge_runtime_env(dict(submitted), runtime_env(ADDRESS)) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": submitted}))
    merged = _merge_runtime_env(dict(submitted), runtime_env(ADDRESS))
    assert merged is not None
    assert merged["env_vars"].items() >= submitted["env_vars"].items()


def test_workers_know_which_cluster_is_theirs() -> None:
    """Ray Train's cleaner would ask another cluster of the machine whether the controller of a run lives."""
    assert runtime_env(ADDRESS)["env_vars"]["RAY_ADDRESS"] == ADDRESS  # type: ignore[index]
    assert "RAY_ADDRESS" not in runtime_env("ray://10.0.0.1:10001")["env_vars"]  # type: ignore[operator]


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("a trace\nno room for the object store")

    monkeypatch.setattr("ray.init", fail)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(ClusterError, match=r"Ray does not start on this machine: RuntimeError: no room for the object"):
        connect(ClusterConfig())
    with pytest.raises(ClusterError, match=r"cannot join the Ray cluster at 10.0.0.1:6379: RuntimeError: no room"):
        connect(ClusterConfig(address=ADDRESS))
