"""Runs a stage: a frozen config becomes an artifact.

A second run of the same config does nothing; another config under the same name@version is refused; a run that dies leaves
no visible artifact.
"""

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.input_digests import digest_inputs
from lisan.core.lease import Lease
from lisan.core.progress import doing, say
from lisan.core.storage import check_root, default_root
from lisan.core.torchrun import check_alone, check_together, first_reports


@dataclass(frozen=True, kw_only=True, slots=True)
class StorageConfig:
    root: str = field(default_factory=default_root)
    "Absolute path or object-store URI that holds every artifact; LISAN_HOME, or else ~/lisan."


@dataclass(frozen=True, kw_only=True, slots=True)
class TrackingConfig:
    uri: str | None = None
    "MLflow tracking URI; null means MLFLOW_TRACKING_URI, or else a sqlite store under the root."
    experiment: str = "lisan"
    system_metrics_every_s: float = 10.0
    "Seconds between two samples of the load of the driver's machine, logged as system/*; 0 logs none."

    def __post_init__(self) -> None:
        if not 0 <= self.system_metrics_every_s < math.inf:
            raise ConfigError(
                f"tracking.system_metrics_every_s must be >= 0, 0 for none, got {self.system_metrics_every_s}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """Where and how a stage runs; not part of an artifact's identity."""

    num_workers: int = 0
    "Training workers (one per GPU); 0 trains in this process without Ray."
    num_nodes: int = 1
    "Nodes the workers are spread over; more than one needs storage that every node can reach."
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    threads_per_worker: int = 0
    "Compute threads of a worker; 0 means torch's default on GPU, and an equal share of the node's cores on CPU."
    address: str | None = None
    "Ray cluster to join; null joins the one this job runs in, or starts one on this machine."
    max_failures: int = 3
    "Number of restarts of a failed worker group, from its last checkpoint, and of a dead process of Ray Data."

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.num_nodes < 1:
            raise ConfigError(
                f"cluster needs num_workers >= 0 and num_nodes >= 1, got {self.num_workers} and {self.num_nodes}"
            )
        if not self.cpus_per_worker > 0:
            raise ConfigError(f"cluster.cpus_per_worker must be > 0, got {self.cpus_per_worker}")
        if self.num_nodes > 1 and self.num_workers % self.num_nodes:
            raise ConfigError(
                f"cluster.num_workers ({self.num_workers}) must be a multiple of cluster.num_nodes ({self.num_nodes})"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class StageConfig:
    """Fields of every stage."""

    name: str
    "Name of the artifact that the stage makes."
    version: str = "v1"
    storage: StorageConfig = field(default_factory=StorageConfig, metadata=NOT_IDENTITY)
    tracking: TrackingConfig = field(default_factory=TrackingConfig, metadata=NOT_IDENTITY)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=NOT_IDENTITY)


class TrackedJob(Protocol):
    """Config that says where a job stores and tracks its results, and where it runs."""

    @property
    def storage(self) -> StorageConfig: ...
    @property
    def tracking(self) -> TrackingConfig: ...
    @property
    def cluster(self) -> ClusterConfig: ...


class Run(Protocol):
    """Records metrics, checkpoints, files and tags of a running stage; it pickles into workers."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...
    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None: ...
    def log_file(self, name: str, content: bytes) -> None: ...
    def log_tag(self, key: str, value: str) -> None: ...


class SilentRun:
    """A run that records nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        pass

    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None:
        pass

    def log_file(self, name: str, content: bytes) -> None:
        pass

    def log_tag(self, key: str, value: str) -> None:
        pass


@dataclass(frozen=True)
class Stage:
    """A job that makes an artifact.

    `build(config, draft, run)` writes files into the draft and returns the counts and metrics of the manifest.
    """

    job: str
    kind: Kind
    config: type[Any]
    parents: Callable[[Any], tuple[Ref, ...]]
    build: Callable[[Any, Draft, Run], Mapping[str, Any]]
    check: Callable[[Any, Store], None] | None = None
    "Raises ConfigError or DataError before any machine is taken."
    join: Callable[[Any, Draft], None] | None = None
    "Runs in the other processes of torchrun while the first builds; None for a stage of one process."
    inputs: Callable[[Any], Iterable[str | None]] = lambda _: ()
    "Folders, files and hub ids that the config names; digests of their files are part of the artifact's identity."


OpenRun = Callable[[Stage, Any, tuple[Artifact, ...]], AbstractContextManager[Run]]


def run_stage(stage: Stage, config: StageConfig, open_run: OpenRun, say: Callable[[str], None] = say) -> Artifact:
    """Build the artifact of `config`, or return it when it exists; only the first process of torchrun does.

    Raises ArtifactError when the ref exists with another config or a parent is missing.
    """
    if warning := warn_of_default_root(config.storage.root):
        say(warning)
    with doing("checking the config and its inputs"):
        store, ref, (parents, inputs), existing = _resolve(stage, config)
    if existing is None:
        with Lease(store.lease(ref), str(ref), say):
            existing = store.find(ref, config, parents, inputs)  # another process may have finished it meanwhile
            if existing is None:
                draft = store.begin(ref, config, parents, inputs, stage.job)
                return _build(stage, config, draft, open_run, say)
    gone = [file for file in existing.manifest.get("inputs", ()) if file not in inputs]
    are = f"{len(gone)} {'is' if len(gone) == 1 else 'are'} gone, first {gone[0]}" if gone else ""
    say(f"{ref} exists, nothing to do" + (f"; of its input files {are}" if gone else ""))
    return existing


def _build(stage: Stage, config: StageConfig, draft: Draft, open_run: OpenRun, say: Callable[[str], None]) -> Artifact:
    say(f"{draft.ref} building (fingerprint {draft.fingerprint[:12]})")
    start = time.monotonic()
    with doing(f"building {draft.ref}"), open_run(stage, config, draft.parents) as run:
        facts = dict(stage.build(config, draft, run))
        seconds = round(time.monotonic() - start, 1)
        artifact = draft.commit({**facts, "seconds": seconds})
        numbers = {key: float(value) for key, value in facts.items() if isinstance(value, int | float)}
        run.log_metrics({**numbers, "seconds": seconds})
        run.log_file("manifest.json", (artifact.location / "manifest.json").read_bytes())
    say(f"{draft.ref} done in {seconds:.1f} s")
    return artifact


def join_stage(stage: Stage, config: StageConfig) -> None:
    """Run another process of torchrun: make the same checks as the first, share its work, write and track nothing."""
    with first_reports():
        store, ref, sources, existing = _resolve(stage, config)
        if existing is not None:
            return
        draft = store.check_begun(ref, config, *sources)
    assert stage.join is not None  # checked by `_resolve`
    stage.join(config, draft)


Sources = tuple[tuple[Artifact, ...], dict[str, str]]
"Parents of an artifact and digests of its inputs."


def _resolve(stage: Stage, config: StageConfig) -> tuple[Store, Ref, Sources, Artifact | None]:
    """Return store, ref, parents and input digests of an artifact, and the artifact if it exists; refuse a bad config."""
    if stage.join is None:
        check_alone(stage.job)
    check_together(config.cluster.num_workers, config.cluster.num_nodes)
    check_reachable(config.storage, config.cluster)
    check_gpus(config.cluster)
    store = Store(config.storage.root)
    ref = Ref(stage.kind, config.name, config.version)
    parents = tuple(store.open(parent) for parent in stage.parents(config))
    inputs = digest_inputs(name for name in stage.inputs(config) if name and not Ref.looks_like(name))
    existing = store.find(ref, config, parents, inputs)
    if existing is None and stage.check is not None:
        stage.check(config, store)
    return store, ref, (parents, inputs), existing


def warn_of_default_root(root: str) -> str:
    """Return a warning for a submitted job whose root is the default: `ray job submit` drops the sender's environment."""
    is_sent = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not is_sent or "LISAN_HOME" in os.environ or root != default_root():
        return ""
    return (
        f"  storage.root is {root}, because the cluster has no LISAN_HOME; set storage.root=... for `ray job submit` to use "
        "another"
    )


def check_gpus(cluster: ClusterConfig) -> None:
    """Refuse more GPUs than this machine has, unless the job runs on another cluster."""
    if not cluster.use_gpu or cluster.address or os.environ.get("RAY_ADDRESS"):
        return
    import torch

    have = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not have and not cluster.num_workers:
        raise ConfigError("cluster.use_gpu is true but this process sees no GPU; choose cluster=local for the CPU")
    if have < cluster.num_workers:
        raise ConfigError(
            f"cluster needs {cluster.num_workers} GPUs for its workers, this machine has {have}; choose another preset such as "
            "cluster=cpu2, or name the Ray cluster that has them in cluster.address or RAY_ADDRESS"
        )


def check_reachable(storage: StorageConfig, cluster: ClusterConfig) -> None:
    """Refuse a local root for several nodes, and an object store that does not answer."""
    if cluster.num_nodes > 1 and "://" not in storage.root:
        raise ConfigError(
            f"storage.root {storage.root} is a local path but cluster.num_nodes is {cluster.num_nodes}; "
            "set it to storage that every node reaches: s3://bucket/prefix, or file:///mount for a shared file system"
        )
    check_root(storage.root)
