"""Records metrics, checkpoints, files and tags of a run in MLflow without delaying the training that records them."""

import atexit
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lisan.tracking.background import BackgroundSender
from lisan.tracking.client import MAX_TAG_CHARS, clean_key, connect, first_sentence

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric

FLUSH_S = 30.0
CHECKPOINT_FLUSH_S = 5.0
PERMANENT = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST")
"Error codes that the same request would get again."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoggedCheckpoint:
    """A pointer to a committed training state; the weights stay where they are."""

    step: int
    uri: str
    num_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class _Metric:
    key: str
    value: float
    step: int
    timestamp_ms: int


@dataclass(frozen=True, slots=True)
class _File:
    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class _Tag:
    key: str
    value: str


_Entry = _Metric | LoggedCheckpoint | _File | _Tag
_E = TypeVar("_E")


class MlflowRun:
    """An open MLflow run. It pickles as two strings and an id, so that training workers record in it too.

    No method raises or waits for the network, except that a checkpoint waits up to 5 s to be visible at once.
    """

    def __init__(self, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id

    def __reduce__(self) -> tuple[type["MlflowRun"], tuple[str, str, str]]:
        return MlflowRun, (self.uri, self.run_id, self.experiment_id)

    @property
    def _sender(self) -> BackgroundSender[_Entry]:
        return _open_sender(os.getpid(), self.uri, self.run_id, self.experiment_id)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        now = int(time.time() * 1000)
        for key, value in metrics.items():
            self._sender.put(_Metric(clean_key(key), float(value), step or 0, now))

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:
        self._sender.put(LoggedCheckpoint(step=step, uri=uri, num_bytes=num_bytes, digest=digest))
        self._sender.flush(CHECKPOINT_FLUSH_S)

    def log_file(self, name: str, content: bytes) -> None:
        self._sender.put(_File(name, content))

    def log_tag(self, key: str, value: str) -> None:
        self._sender.put(_Tag(key, value[:MAX_TAG_CHARS]))

    def flush(self, timeout_s: float = FLUSH_S) -> bool:
        """Wait until MLflow has everything that this process recorded; False after `timeout_s`."""
        return self._sender.flush(timeout_s)


@lru_cache(maxsize=64)
def _open_sender(_pid: int, uri: str, run_id: str, experiment_id: str) -> BackgroundSender[_Entry]:
    """Return one sender for all copies of a run in a process; a forked process gets its own."""
    sender: BackgroundSender[_Entry] = BackgroundSender(_Writer(uri, run_id, experiment_id).write)
    atexit.register(sender.flush, CHECKPOINT_FLUSH_S)
    return sender


class _Writer:
    """Writes entries to MLflow; runs in the thread of the sender."""

    def __init__(self, uri: str, run_id: str, experiment_id: str) -> None:
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id
        self._latest: dict[str, _Metric] = {}

    def write(self, entries: list[_Entry]) -> None:
        with connect(self.uri) as client:
            metrics = [entry for entry in entries if isinstance(entry, _Metric)]
            for start in range(0, len(metrics), 1000):
                self._try(self._write_metrics, client, metrics[start : start + 1000])
            for entry in entries:
                if isinstance(entry, LoggedCheckpoint):
                    self._try(self._write_checkpoint, client, entry)
                elif isinstance(entry, _File):
                    self._try(self._write_file, client, entry)
                elif isinstance(entry, _Tag):
                    self._try(self._write_tag, client, entry)

    def _try(self, write: "Callable[[MlflowClient, _E], None]", client: "MlflowClient", entry: _E) -> None:
        """Drop with a warning what MLflow will never accept; raise every other error, so that it is tried again."""
        from mlflow.exceptions import MlflowException

        try:
            write(client, entry)
        except (MlflowException, ImportError, PermissionError) as error:
            if isinstance(error, MlflowException) and error.error_code not in PERMANENT:
                raise
            logging.getLogger(__name__).warning("MLflow refuses part of run %s: %s", self.run_id, first_sentence(error))

    def _write_metrics(self, client: "MlflowClient", metrics: list[_Metric]) -> None:
        self._latest.update({metric.key: metric for metric in metrics if not metric.key.startswith("system/")})
        client.log_batch(self.run_id, metrics=[self._entity(metric) for metric in metrics])

    def _entity(self, metric: _Metric, model_id: str | None = None) -> "Metric":
        from mlflow.entities import Metric

        return Metric(metric.key, metric.value, metric.timestamp_ms, metric.step, model_id=model_id, run_id=self.run_id)

    def _write_checkpoint(self, client: "MlflowClient", checkpoint: LoggedCheckpoint) -> None:
        """Log a model without files: MLflow's Models tab then lists every checkpoint with the metrics it had."""
        from mlflow.entities import LoggedModelOutput

        if checkpoint in list_checkpoints(client, self.run_id):
            return  # a resumed run logs its last checkpoint again
        run_name = client.get_run(self.run_id).info.run_name
        facts = {key: str(value) for key, value in asdict(checkpoint).items()}
        model = client.create_logged_model(
            self.experiment_id,
            name=re.sub(r"[^\w-]+", "-", f"{run_name}-step-{checkpoint.step:06d}"),
            source_run_id=self.run_id,
            params=facts,
            tags={"mlflow.model.isExternal": "true"},
            model_type="checkpoint",
        )
        client.finalize_logged_model(model.model_id, "READY")
        client.log_outputs(self.run_id, [LoggedModelOutput(model.model_id, checkpoint.step)])
        if self._latest:
            client.log_batch(self.run_id, metrics=[self._entity(m, model.model_id) for m in self._latest.values()])

    def _write_tag(self, client: "MlflowClient", tag: _Tag) -> None:
        client.set_tag(self.run_id, tag.key, tag.value)

    def _write_file(self, client: "MlflowClient", file: _File) -> None:
        folder, _, name = file.name.rpartition("/")
        with tempfile.TemporaryDirectory() as temporary:
            path = Path(temporary) / name
            path.write_bytes(file.content)
            client.log_artifact(self.run_id, str(path), folder or None)


def list_checkpoints(client: "MlflowClient", run_id: str) -> list[LoggedCheckpoint]:
    """Return the checkpoints that a run committed, by step."""
    experiment_id = client.get_run(run_id).info.experiment_id
    found: dict[int, LoggedCheckpoint] = {}
    token = None
    while True:
        query = f"source_run_id = '{run_id}'"
        order = [{"field_name": "creation_timestamp", "ascending": True}]
        page = client.search_logged_models([experiment_id], query, order_by=order, page_token=token)
        for facts in (model.params for model in page if model.model_type == "checkpoint"):
            step = int(facts["step"])
            found[step] = LoggedCheckpoint(
                step=step, uri=facts["uri"], num_bytes=int(facts["num_bytes"]), digest=facts["digest"]
            )
        token = page.token
        if not token:
            return [found[step] for step in sorted(found)]
