"""Connects to a Ray cluster and maps functions over items on it.

An existing connection is kept, the package reaches the workers without a PYTHONPATH, a Ray that this process did not start is
never shut down, and an error of a worker becomes one sentence.
"""

import json
import logging
import os
import pickle
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from ray._private.services import canonicalize_bootstrap_address_or_die
from ray.util.annotations import RayDeprecationWarning

import lisan
from lisan.core.errors import ClusterError, ConfigError, LisanError, first_line
from lisan.core.interrupt import is_main_thread
from lisan.core.progress import doing
from lisan.core.stage import ClusterConfig
from lisan.core.versions import code_commit

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

RAY_LOGS = "/tmp/ray/session_latest/logs"
"Folder of the logs of Ray's processes."

PASSED = ("LISAN_HOME", "LISAN_DATA")
"Variables of the driver's environment that workers need besides DEFAULTS."


def connect(cluster: ClusterConfig) -> None:
    """Join the cluster that `cluster.address` or RAY_ADDRESS names, or start one on this machine.

    Raises ConfigError when the named cluster does not answer.
    """
    if ray.is_initialized():
        return
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    warnings.filterwarnings("ignore", category=RayDeprecationWarning)  # about calls inside of Ray Data and Ray Train
    address = cluster.address or os.environ.get("RAY_ADDRESS")
    with doing(f"joining Ray at {address}" if address else "starting Ray on this machine"), _own_sigterm():
        _start(cluster) if address is None else _join(address)
    _quiet_data()


def _start(cluster: ClusterConfig) -> None:
    """Start a Ray that ends with this process."""
    # Logical CPUs: one per worker and two for Ray Data, so that two cores do not deadlock.
    num_cpus = max(os.cpu_count() or 1, cluster.num_workers + 2)
    # Ray logs errors only: workers print the lines of the job.
    quiet = {"logging_level": logging.ERROR, "logging_config": ray.LoggingConfig(log_level="ERROR")}
    try:
        with _known_address():
            ray.init("local", num_cpus=num_cpus, include_dashboard=False, **quiet)
    except Exception as error:
        raise ClusterError(
            f"Ray does not start on this machine: {reason_of(error)}; see {RAY_LOGS}, free memory, disk and ports, or join a "
            "cluster that runs with cluster.address"
        ) from error


def _join(address: str) -> None:
    try:
        ray.init(address=address, logging_level=logging.ERROR, runtime_env=runtime_env(address))
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at {address}; start one with `ray start --head`, or leave "
            "cluster.address null to run on this machine"
        ) from error
    except Exception as error:
        raise ClusterError(f"cannot join the Ray cluster at {address}: {reason_of(error)}") from error


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the job's handler of SIGTERM: Ray replaces it by one that ends the process silently."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and is_main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _known_address() -> Iterator[None]:
    """Let a Ray that is started in the block listen on a port that its own processes find in RAY_ADDRESS.

    Ray Train's placement group cleaner asks the state API whether the controller of its run is alive. Without RAY_ADDRESS that
    API asks the last cluster that `ray start` started on this machine, which has no such controller, and the cleaner removes
    the placement group of a healthy run. The variables are restored, because the driver may start another Ray later.
    """
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    own = {"RAY_GCS_SERVER_PORT": str(port), "RAY_ADDRESS": f"{ray.util.get_node_ip_address()}:{port}"}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def runtime_env(address: str) -> dict[str, object]:
    """Return a runtime environment with the package that the driver imported, so that the cluster never runs a stale copy.

    RAY_ADDRESS is the cluster's own, for the reason in `_known_address`. MLflow's credentials are passed too, because workers
    record by themselves; a user who sees them on Ray's dashboard could also submit a job that reads them.
    """
    names = [name for name in os.environ if name in (*DEFAULTS, *PASSED) or name.startswith("MLFLOW_TRACKING_")]
    passed = {"LISAN_COMMIT": code_commit(), **{name: os.environ[name] for name in names}}
    if "://" not in address:  # the server of Ray Client has the address of its cluster, the client has not
        passed["RAY_ADDRESS"] = canonicalize_bootstrap_address_or_die(address)
    # Ray refuses a variable that the submitted job has too; workers get it in any case.
    submitted = json.loads(os.environ.get(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")).get("runtime_env") or {}
    passed = {name: value for name, value in passed.items() if name not in submitted.get("env_vars", {})}
    return {"py_modules": [str(Path(lisan.__file__).parent)], "env_vars": passed}


def _quiet_data() -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.execution_options.preserve_order = True
    context.execution_options.verbose_progress = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # warns that the bars are off


def check_alive() -> None:
    """Raise ClusterError when a process of the local Ray has died; Ray would end this process without a message."""
    node = ray._private.worker._global_node
    dead = node.dead_processes() if node is not None else []
    if dead:
        mute_workers()
        raise ClusterError(
            f"Ray's {dead[0][0]} on this machine ended; see {RAY_LOGS}, free memory and disk; the same command resumes from "
            "the last checkpoint"
        )


def mute_workers() -> None:
    """Stop printing the output of workers, such as the traces of those that end with the job."""
    global_worker_stdstream_dispatcher.remove_handler("ray_print_logs")


def map_in_tasks(function: Callable[[Any], Any], items: Sequence[Any], cluster: ClusterConfig) -> Generator[Any]:
    """Yield the result of each item from Ray tasks, in any order; see `map_items` in `lisan/cluster/map_items.py`."""
    options = task_options(cluster, len(items))
    yield from map_on_ray(answer, items, fn_kwargs={"function": function}, **options)


def task_options(cluster: ClusterConfig, num_tasks: int) -> dict[str, Any]:
    """Return options of `Dataset.map` for `num_workers` tasks at a time: on two cores, eight processes only import."""
    pool = ray.data.TaskPoolStrategy(size=max(1, min(cluster.num_workers, num_tasks)))
    return {"compute": pool, "num_cpus": min(1.0, cluster.cpus_per_worker), "max_retries": cluster.max_failures}


def map_in_actors(
    make: Callable[[], Callable[[Any], Any]], items: Sequence[Any], cluster: ClusterConfig
) -> Generator[Any]:
    """Yield the result of each item from Ray actors, each with a function that `make` returned; in any order."""
    if not items:
        return
    yield from map_on_ray(
        _Actor,
        items,
        fn_constructor_kwargs={"make": make},
        compute=ray.data.ActorPoolStrategy(size=min(cluster.num_workers, len(items))),
        num_cpus=min(1.0, cluster.cpus_per_worker),
        num_gpus=1.0 if cluster.use_gpu else None,
        max_restarts=cluster.max_failures,
        max_task_retries=cluster.max_failures,
    )


class _Actor:
    """Calls one function on every row that Ray Data sends to an actor."""

    def __init__(self, make: Callable[[], Callable[[Any], Any]]) -> None:
        self.function = make()

    def __call__(self, row: Mapping[str, bytes]) -> dict[str, bytes]:
        return answer(row, self.function)


def map_on_ray(call: Any, items: Sequence[Any], **options: Any) -> Generator[Any]:
    """Yield the result of each item in any order; `call` is a function or a class that takes a row and returns `answer`'s.

    `options` are those of `Dataset.map`. Raises errors that a user can cause as they are, any other as ClusterError. Ray Data
    restarts a process that died without end unless `options` limit it (`max_retries` of tasks, `max_restarts` of actors).
    """
    if not items:
        return
    rows = [{"item": pickle.dumps(item)} for item in items]
    answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(call, **options)
    done = 0
    with in_one_sentence(), doing(lambda: f"  {done} of {len(items)} parts are back from Ray"):
        for row in answers.iter_rows():
            done += 1
            result = pickle.loads(row["result"])
            if isinstance(result, LisanError):
                raise result
            yield result


def answer(row: Mapping[str, bytes], function: Callable[[Any], Any]) -> dict[str, bytes]:
    """Compute one item for `map_on_ray`. An error is returned as a value: Ray would wrap it in a trace and keep only its text."""
    try:
        result = function(pickle.loads(row["item"]))
    except LisanError as error:
        result = error
    except Exception as error:
        result = ClusterError(f"{type(error).__name__}: {first_line(error) if str(error).strip() else 'no message'}")
        result.add_note(traceback.format_exc())
    return {"result": pickle.dumps(result)}


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """Turn an error of a Ray worker into ClusterError; a LisanError stays as it is."""
    try:
        yield
    except LisanError:
        raise
    except Exception as error:
        raise ClusterError(reason_of(error)) from error


def reason_of(error: BaseException) -> str:
    """Return the message of the LisanError inside of an error of Ray, or else name the first failure."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in causes:
        inner: BaseException | None = cause
        while inner is not None:
            if isinstance(inner, LisanError):
                return str(inner)
            inner = getattr(inner, "cause", None) or inner.__cause__
    first = causes[0]
    return f"{type(first).__name__}: {str(first).strip().splitlines()[-1] if str(first).strip() else 'no message'}"
