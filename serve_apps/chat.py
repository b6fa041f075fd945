"""Builds the Serve application of `serve run serve_apps.chat:build alias=champion` and `serve deploy serve_apps/chat.yaml`.

Arguments are fields of `lisan.inference.config.ServeConfig`: `key=value`, with dots for nested fields.
"""

from typing import Any

import ray
from ray.serve import Application

from lisan.core.command_line.run_job import sentences
from lisan.core.errors import ConfigError
from lisan.inference.endpoint import check_port
from lisan.serve.app import build_app, is_serve_proxy, listen, read_arguments


def build(args: dict[str, Any]) -> Application:
    """Return the Serve application; ConfigError for `host` and `port` in a deploy file."""
    named = [key for key in ("host", "port") if key in args]
    if ray.is_initialized():
        # Deployed by the cluster: `serve status` shows errors that are raised; an exit would look like a lost worker.
        if named:
            raise ConfigError(
                f"{named[0]} has no effect on a running Serve; set http_options.{named[0]} of the deploy file"
            )
        return build_app(read_arguments(args))
    with sentences():
        config = read_arguments(args)
        if not is_serve_proxy(config):
            check_port(config)
        application = build_app(config)
        if named:
            # `serve run` would start Serve after this function, at the default address.
            listen(config)
        return application
