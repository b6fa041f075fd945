"""What `serve run serve_apps.chat:build alias=champion` and `serve deploy serve_apps/chat.yaml` start.

In: `key=value` arguments, any field of `lisan.serve.app.ServeConfig`, groups with dots. Out: the Serve application.
"""

from typing import Any

import ray
from ray.serve import Application

from lisan.core.config import sentences
from lisan.serve.app import DEFAULT_PORT, build_app, check_port, is_serve_proxy, read_arguments


def build(args: dict[str, Any]) -> Application:
    """Build the application that `serve run` or the cluster deploys."""
    if ray.is_initialized():
        # In the cluster: Serve shows what is raised in `serve status`; an exit would only look like a lost worker.
        return build_app(read_arguments(args))
    with sentences():
        config = read_arguments(args)
        if not is_serve_proxy(DEFAULT_PORT):
            check_port(DEFAULT_PORT)
        return build_app(config)
