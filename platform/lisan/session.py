"""The one way into a Ray cluster.

In: a `ClusterConfig`. Out: a connected Ray. Always: whoever is connected already stays connected, the package reaches
the workers without a PYTHONPATH, and nothing here shuts down a Ray that it did not start. Called by every file that
uses Ray.
"""

import json
import logging
import os
import warnings
from pathlib import Path

import ray
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR

import lisan
from lisan.core.artifact import code_commit
from lisan.core.errors import ConfigError
from lisan.core.stage import ClusterConfig

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # workers keep the job's folder
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # a report costs one poll of the controller
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_DATA_LOG_LEVEL": "ERROR",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # it prints every line of a worker twice
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # stages print their own lines, readable in a job log
    "RAY_JOB_STOP_WAIT_TIME_S": "60",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",  # one task, one core
    "RAYON_NUM_THREADS": "1",
}

PASSED = ("LISAN_HOME", "LISAN_DATA")
"What workers read of the driver's environment, beside the above."


def connect(cluster: ClusterConfig) -> None:
    """Join the cluster that `cluster.address` or RAY_ADDRESS names, or start one on this machine.

    Raises ConfigError when the named cluster does not answer.
    """
    if ray.is_initialized():
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    if address is None:
        # Logical CPUs: one a worker, two for the data that feeds them, so that two cores do not deadlock.
        num_cpus = max(os.cpu_count() or 1, cluster.num_workers + 2)
        # Workers log errors only: what they print is ours.
        ray.init(
            "local",
            num_cpus=num_cpus,
            include_dashboard=False,
            logging_level=logging.ERROR,
            logging_config=ray.LoggingConfig(log_level="ERROR"),
        )
    else:
        try:
            ray.init(address=address, logging_level=logging.ERROR, runtime_env=runtime_env())
        except ConnectionError as error:
            raise ConfigError(
                f"no Ray cluster answers at {address}; start one with `ray start --head`, or leave "
                "cluster.address null to run on this machine"
            ) from error
    _quiet_data()


def runtime_env() -> dict[str, object]:
    """Ship the very package that the driver imported, so that the cluster never runs a stale copy, and what names its commit.

    With where MLflow is go the keys to it: workers record for themselves. Whoever sees them on Ray's dashboard could as well
    submit a job that reads them.
    """
    names = [name for name in os.environ if name in (*DEFAULTS, *PASSED) or name.startswith("MLFLOW_TRACKING_")]
    passed = {"LISAN_COMMIT": code_commit(), **{name: os.environ[name] for name in names}}
    # Ray refuses a variable that the submitted job has too, which every worker gets anyway.
    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env") or {}
    passed = {name: value for name, value in passed.items() if name not in submitted.get("env_vars", {})}
    return {"py_modules": [str(Path(lisan.__file__).parent)], "env_vars": passed}


def _quiet_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
