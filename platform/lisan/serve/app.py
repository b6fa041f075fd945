"""Builds the Ray Serve application that `serve run` and deploy files name."""

import urllib.request
from collections.abc import Mapping
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from lisan.core.config import load
from lisan.core.errors import ConfigError, ServingError
from lisan.inference.config import ServeConfig
from lisan.inference.endpoint import build_model_app
from lisan.inference.served_model import find_served_model

if TYPE_CHECKING:
    from ray.serve import Application


def read_arguments(arguments: Mapping[str, Any]) -> ServeConfig:
    """Return the config of the arguments of `serve run` (dotted keys, all values strings) or of a deploy file (nested).

    Raises ConfigError.
    """
    nested: dict[str, Any] = {}
    for key, value in arguments.items():
        *groups, name = key.split(".")
        parent = nested
        for group in groups:
            parent = parent.setdefault(group, {})
            if not isinstance(parent, dict):
                raise ConfigError(f"{key} and {group} are both given; keep one of them")
        parent[name] = None if value == "null" else value
    return load(ServeConfig, nested)


def is_serve_proxy(config: ServeConfig) -> bool:
    """Return whether the server at the config's address is Ray Serve, to which an application can be added."""
    try:
        with urllib.request.urlopen(f"{config.address}/-/healthz", timeout=2) as reply:
            return bool(reply.read() == b"success")
    except (OSError, ValueError, HTTPException):
        return False


def listen(config: ServeConfig) -> None:
    """Start Serve at the config's host and port; ServingError when the cluster's Serve already listens elsewhere.

    Joins the Ray of RAY_ADDRESS or of this machine, or starts one, as `serve run` does.
    """
    from ray import serve
    from ray.serve.context import _get_global_client

    serve.start("EveryNode", {"host": config.host, "port": config.port})
    found = _get_global_client().http_config
    if (found.host, found.port) != (config.host, config.port):
        raise ServingError(
            f"Ray Serve runs on this cluster already and listens at {found.host}:{found.port}, not at {config.host}:{config.port}; "
            "leave out host and port to deploy to it, or end it with `serve shutdown`"
        )


def build_app(config: ServeConfig) -> "Application":
    """Return the Serve application of the model that `config` names; ServingError when there is none."""
    return build_model_app(config, find_served_model(config))
