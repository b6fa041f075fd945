"""Opens the MLflow store of a config and turns its errors into one sentence."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from lisan.core.credentials import hide_credentials
from lisan.core.errors import ConfigError, LisanError
from lisan.core.stage import TrackingConfig
from lisan.core.storage import Location

if TYPE_CHECKING:
    from mlflow import MlflowClient

MAX_TAG_CHARS = 8000
STORE_LIBRARIES = ("mlflow.", "requests.", "urllib3.", "sqlalchemy.")
"Their errors mean that the tracking store does not answer or is not an MLflow store."


def tracking_uri(tracking: TrackingConfig, root: str) -> str:
    """Return the MLflow tracking URI: the configured one, MLFLOW_TRACKING_URI, or else sqlite under a local root."""
    named = tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if named:
        return named
    folder = Location(root)
    if not folder.is_local:
        raise ConfigError(
            f"tracking.uri must be set when storage.root is {root}, because sqlite needs a local disk; "
            "set it or MLFLOW_TRACKING_URI to an MLflow server such as http://host:5000"
        )
    return f"sqlite:///{folder.full_path}/mlflow.db"


@lru_cache(maxsize=8)
def open_client(uri: str) -> "MlflowClient":
    """Open the store behind `uri`; the first call imports MLflow, which takes about a second."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # MLflow's default of seven retries with backoff blocks a caller for minutes when the server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow import MlflowClient

    for chatty in ("alembic", "mlflow"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    if uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                f"tracking.uri {uri} cannot be opened: no folder {folder} ({error.strerror}); choose another one"
            ) from error
    return MlflowClient(uri, uri)


@contextmanager
def connect(uri: str) -> "Iterator[MlflowClient]":
    """Yield the client of `uri`; ConfigError when the store refuses or does not answer."""
    try:
        yield open_client(uri)
    except LisanError:
        raise
    except Exception as error:
        if not (isinstance(error, ImportError) or type(error).__module__.startswith(STORE_LIBRARIES)):
            raise
        raise ConfigError(
            f"tracking.uri {hide_credentials(uri)} does not work as an MLflow store: {first_sentence(error)}; "
            "start the server, or set tracking.uri or MLFLOW_TRACKING_URI to one that answers"
        ) from error


def first_sentence(error: Exception) -> str:
    """Return the first sentence of MLflow's message; for a server that does not answer it is a paragraph long."""
    text = hide_credentials(" ".join(str(error).split())) or type(error).__name__
    return "it does not answer" if "Max retries exceeded" in text else text.split(". ")[0][:300]


def is_server(uri: str) -> bool:
    return uri.startswith(("http://", "https://", "databricks"))


def clean_key(key: str) -> str:
    """Return the name of a metric or parameter with `_` for every character that MLflow refuses."""
    return re.sub(r"[^\w.\-: /]", "_", key)[:250]
