"""What `serve run serve_apps.chat:build alias=champion` and `serve deploy serve_apps/chat.yaml` start.

In: `key=value` arguments, any field of `lisan.inference.endpoint.ServeConfig`, groups with dots. Out: the Serve application.
"""

from typing import Any

import ray
from ray.serve import Application

from lisan.core.command_line.run_job import sentences
from lisan.core.errors import ConfigError
from lisan.inference.endpoint import check_port
from lisan.serve.app import build_app, is_serve_proxy, listen, read_arguments


def build(args: dict[str, Any]) -> Application:
    """Build the application that `serve run` or the cluster deploys."""
    named = [key for key in ("host", "port") if key in args]
    if ray.is_initialized():
        # In the cluster: Serve shows what is raised in `serve status`; an exit would only look like a lost worker.
        if named:
            raise ConfigError(
                f"{named[0]} has no effect on a Serve that runs; set http_options.{named[0]} of the deploy file"
            )
        return build_app(read_arguments(args))
    with sentences():
        config = read_arguments(args)
        if not is_serve_proxy(config):
            check_port(config)
        application = build_app(config)
        if named:
            # Serve is started after this function, at its own default address.
            listen(config)
        return application
