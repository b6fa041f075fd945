"""Serves a model folder behind the OpenAI API: one Ray Serve deployment of vLLM.

`serving` does so for the length of a block, `build_model_app` returns the application for `serve run` and deploy files. The
autoscaling replicas answer /v1/models, /v1/chat/completions and /v1/completions with the folder's chat template and generation
defaults. Wrong configs fail with one sentence before anything starts. Only replicas import vLLM, which takes 6 s a process.
"""

import logging
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from lisan.core.errors import ServingError
from lisan.core.integrity import fetch_folder
from lisan.core.stage import ClusterConfig
from lisan.inference.config import EndpointConfig, ServeConfig
from lisan.inference.engine_errors import last_reason
from lisan.inference.served_model import ServedModel, check_weights, find_served_model
from lisan.inference.vllm import Replica, warn_of_int8

if TYPE_CHECKING:
    from ray.serve import Application

APP_NAME = "lisan"
ANSWER_TIMEOUT_S = 10.0
LOGS = {"RAY_SERVE_LOG_TO_STDERR": "0"}
"Serve logs to files only; a failed replica would print its stack trace between our messages."
POLL_S = 0.25
REPORT_EVERY_S = 5.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A running application."""

    url: str
    "Base URL for an OpenAI client, with /v1."
    model: ServedModel
    seconds: float
    "From the call of `start` to the first answer."

    @property
    def client_config(self) -> EndpointConfig:
        return EndpointConfig(url=self.url, model=self.model.name)

    def stop(self) -> None:
        """Delete every Serve application of the joined cluster; the cluster itself stays."""
        from ray import serve

        with _quiet_logs():
            serve.shutdown()


def find_free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def check_port(config: ServeConfig) -> None:
    """Raise ServingError for an address on which this machine cannot listen."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ServingError(
                f"port {config.port} on {config.host} cannot be used ({error.strerror or error}); "
                "stop what listens there or choose another port or host"
            ) from error


def build_model_app(config: ServeConfig, model: ServedModel) -> "Application":
    """Return the Serve application of a model.

    One deployment: the replica that holds the engine also answers HTTP, through vLLM's own OpenAI app. The separate
    ingress of `build_openai_app` imports vLLM in two more processes and adds a hop to every token.
    """
    from ray import serve

    use_gpu = has_gpu() if config.use_gpu is None else config.use_gpu
    if not use_gpu and model.folder.is_local and (warning := warn_of_int8(fetch_folder(model.folder))):
        print(f"{model.source}: {warning}", flush=True)
    deployment = serve.deployment(serve.ingress()(Replica), **deployment_options(config, use_gpu))
    return deployment.bind(model, config.engine, use_gpu)


def has_gpu() -> bool:
    """Return whether the joined cluster has GPUs, or this machine when no cluster is joined."""
    import ray

    if ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0)) > 0
    import torch

    return torch.cuda.is_available()


def deployment_options(config: ServeConfig, use_gpu: bool) -> dict[str, Any]:
    """Return the options of `serve.deployment`: autoscaling, queue limits and the resources of one replica."""
    scaling = config.autoscaling
    # Ray Serve LLM starts vLLM's GPU workers as actors in the placement group of the replica.
    gpus: list[dict[str, float]] = [{"GPU": 1.0}] * config.engine.tensor_parallel_size if use_gpu else [{}]
    return {
        "name": APP_NAME,
        "autoscaling_config": {
            "min_replicas": scaling.min_replicas,
            "max_replicas": scaling.max_replicas,
            "target_ongoing_requests": scaling.target_ongoing_requests,
            "upscale_delay_s": scaling.upscale_delay_s,
            "downscale_delay_s": scaling.downscale_delay_s,
        },
        "ray_actor_options": {"num_cpus": config.cpus_per_replica},
        "placement_group_bundles": [{"CPU": config.cpus_per_replica, **gpus[0]}, *gpus[1:]],
        "placement_group_strategy": "STRICT_PACK",
        # vLLM queues and batches better than Serve, because it knows the lengths of its requests.
        "max_ongoing_requests": int(max(256, 4 * scaling.target_ongoing_requests)),
        "max_queued_requests": config.max_queued_requests,
        "max_constructor_retry_count": 2,
        "health_check_timeout_s": 60,
        "logging_config": {"log_level": "WARNING", "enable_access_log": False},
    }


@contextmanager
def serving(config: ServeConfig, say: Callable[[str], None] = print) -> Iterator[Endpoint]:
    """Serve a model for the length of the block."""
    endpoint = start(config, say)
    try:
        yield endpoint
    finally:
        endpoint.stop()


def start(config: ServeConfig, say: Callable[[str], None] = print) -> Endpoint:
    """Serve a model and return once it answers; ServingError when it fails to start.

    Joins the Ray of this process, or starts one.
    """
    begin = time.monotonic()
    model = find_served_model(config)
    check_port(config)
    if model.folder.is_local:
        check_weights(fetch_folder(model.folder))
    from ray import serve

    from lisan.cluster.ray import connect

    connect(ClusterConfig())
    with _quiet_logs():
        applications = serve.status().applications
        if serve.status().proxies:
            raise ServingError(
                f"Ray Serve already runs on this cluster ({', '.join(applications) or 'no application'}); "
                "end it with `serve shutdown`, or deploy beside it with `serve deploy`"
            )
        say(f"serving {model.source} as {model.name!r} on port {config.port}")
        try:
            http = {"host": config.host, "port": config.port}
            serve.start("HeadOnly", http, controller_options={"runtime_env": {"env_vars": LOGS}})
            serve.run_many(
                [serve.RunTarget(build_model_app(config, model), name=APP_NAME, route_prefix=config.route_prefix)],
                wait_for_ingress_deployment_creation=False,
                wait_for_applications_running=False,
            )
            url = f"{config.address}{config.route_prefix.rstrip('/')}/v1"
            _wait_until_ready(url, begin + config.start_timeout_s, say)
        except BaseException:
            serve.shutdown()
            raise
    seconds = time.monotonic() - begin
    say(f"serving {model.name!r} at {url} after {seconds:.0f} s")
    return Endpoint(url=url, model=model, seconds=seconds)


def _wait_until_ready(url: str, deadline: float, say: Callable[[str], None]) -> None:
    """Poll until the endpoint lists its models; ServingError when the application fails or at the deadline."""
    from ray import serve
    from ray.serve.schema import ApplicationStatus

    begin = reported = time.monotonic()
    while True:
        app = serve.status().applications[APP_NAME]
        message = " ".join([app.message, *(deployment.message for deployment in app.deployments.values())])
        if app.status == ApplicationStatus.DEPLOY_FAILED:
            raise ServingError(f"{url} does not start: {last_reason(message)}")
        if app.status == ApplicationStatus.RUNNING and _answers(f"{url}/models"):
            return
        now = time.monotonic()
        if now > deadline:
            raise ServingError(
                f"{url} is {app.status.lower()} after start_timeout_s ({last_reason(message) or 'no message'}); "
                "check that the cluster has the CPUs or GPUs of one replica free, or raise start_timeout_s"
            )
        if now - reported >= REPORT_EVERY_S:
            reported = now
            say(f"serving: {now - begin:.0f} s, {app.status.lower()}")
        time.sleep(POLL_S)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_TIMEOUT_S) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPException):  # not started yet, or closing connections between two states
        return False


@contextmanager
def _quiet_logs() -> Iterator[None]:
    """Raise the level of Serve's logger to ERROR; the endpoint prints its own progress."""
    logger = logging.getLogger("ray.serve")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
