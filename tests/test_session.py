"""What workers on a cluster learn of the driver."""

import json

import pytest

from lisan.core.artifact import code_commit
from lisan.session import runtime_env


def test_workers_know_the_commit_and_how_to_reach_the_tracker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LISAN_COMMIT", raising=False)
    secrets = {f"MLFLOW_TRACKING_{name}": name.lower() for name in ("URI", "USERNAME", "PASSWORD", "TOKEN")}
    for name, value in {**secrets, "LISAN_DATA": "/data", "OTHER": "1"}.items():
        monkeypatch.setenv(name, value)
    passed = runtime_env()["env_vars"]
    assert passed.items() >= {**secrets, "LISAN_DATA": "/data", "LISAN_COMMIT": code_commit()}.items()  # type: ignore[attr-defined]
    assert "OTHER" not in passed  # type: ignore[operator]


def test_what_a_submitted_job_gives_its_workers_is_not_given_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses to merge two environments that both have a variable."""
    from ray.runtime_env.runtime_env import _merge_runtime_env

    submitted = {"env_vars": {"LISAN_COMMIT": "abc", "MLFLOW_TRACKING_URI": "http://host"}}
    for name, value in submitted["env_vars"].items():
        monkeypatch.setenv(name, value)
    assert _merge_runtime_env(dict(submitted), runtime_env()) is None
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": submitted}))
    merged = _merge_runtime_env(dict(submitted), runtime_env())
    assert merged is not None
    assert merged["env_vars"].items() >= submitted["env_vars"].items()
