"""What every stage has in common: where it runs, what it makes, and the one path from a config to an artifact.

In: a stage's frozen config. Out: an `Artifact`. Always: a second run of the same config does nothing; another config
under the same name@version is refused; a run that dies leaves nothing visible. `lisan.recipes.jobs` is the only caller.
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
from lisan.core.torchrun import check_alone, check_together, first_speaks

MAX_VALIDATION_S = 1500
"Leaves the workers, which wait for half an hour until a checkpoint is settled, time for the rest of it."


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
    "Between two readings of how busy the driver's machine is, logged as system/*; 0 logs none."

    def __post_init__(self) -> None:
        if not 0 <= self.system_metrics_every_s < math.inf:
            raise ConfigError(
                f"tracking.system_metrics_every_s must be >= 0, 0 for none, got {self.system_metrics_every_s}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ClusterConfig:
    """How a stage is executed. Never part of an artifact's identity."""

    num_workers: int = 0
    "Training workers (one per GPU); 0 trains in this process without Ray."
    num_nodes: int = 1
    "Nodes the workers are spread over; more than one needs storage that every node can reach."
    use_gpu: bool = False
    cpus_per_worker: float = 1.0
    threads_per_worker: int = 0
    "Compute threads of a worker; 0 leaves the choice to torch, and on CPU shares the node's cores among its workers."
    address: str | None = None
    "Ray cluster to join; null joins the one this job runs in, or starts one on this machine."
    max_failures: int = 3
    "How often a failed worker group is restarted from its last checkpoint, and a process of Ray Data that died."
    validation_timeout_s: int = 1200
    "A checkpoint whose validation beside training takes longer stays without its losses; less than half an hour."
    collective_timeout_s: int = 600
    "During set-up a collective that waits longer than this has lost a peer, and the run restarts."
    step_timeout_s: int = 300
    """The same after the first step, for collectives and for a worker that hangs outside of them; where steps are slow it
    grows to five times the slowest. Watched where somebody starts a worker again: Ray Train, torchrun."""
    peak_tflops: float | None = None
    """TFLOP/s that a training worker's device is capable of, what MFU is a share of; null takes the data sheet's where the
    GPU is known, or else measures for less than a second, 0 leaves MFU out."""

    def __post_init__(self) -> None:
        if self.num_workers < 0 or self.num_nodes < 1:
            raise ConfigError(
                f"cluster needs num_workers >= 0 and num_nodes >= 1, got {self.num_workers} and {self.num_nodes}"
            )
        if not self.cpus_per_worker > 0:
            raise ConfigError(f"cluster.cpus_per_worker must be > 0, got {self.cpus_per_worker}")
        if self.peak_tflops is not None and not 0 <= self.peak_tflops < math.inf:
            raise ConfigError(
                f"cluster.peak_tflops must be > 0, 0 for no MFU or null to find out, got {self.peak_tflops}"
            )
        if self.step_timeout_s < 1 or self.collective_timeout_s < 1:
            raise ConfigError(
                "cluster needs step_timeout_s >= 1 and collective_timeout_s >= 1, got "
                f"{self.step_timeout_s} and {self.collective_timeout_s}"
            )
        if not 1 <= self.validation_timeout_s <= MAX_VALIDATION_S:
            raise ConfigError(
                f"cluster.validation_timeout_s must be in 1..{MAX_VALIDATION_S}, because the other workers wait for half an hour, "
                f"got {self.validation_timeout_s}; lower validation.num_rows where it takes longer"
            )
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


class Run(Protocol):
    """What a stage may tell the tracker while it works; it pickles into workers."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None: ...
    def log_checkpoint(self, step: int, uri: str, num_bytes: int, digest: str) -> None: ...
    def log_file(self, name: str, content: bytes) -> None: ...
    def log_tag(self, key: str, value: str) -> None: ...


class SilentRun:
    """A run that nobody watches: tests and bare processes."""

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
    """A named step of the way from text to replies.

    `build(config, draft, run)` writes files into the draft and returns the counts and metrics of the manifest.
    """

    job: str
    kind: Kind
    config: type[Any]
    parents: Callable[[Any], tuple[Ref, ...]]
    build: Callable[[Any, Draft, Run], Mapping[str, Any]]
    check: Callable[[Any, Store], None] | None = None
    "Everything that can be known to be wrong before a machine is taken."
    join: Callable[[Any, Draft], None] | None = None
    """What the other processes do while the first builds, where torchrun started several; None for a stage that is built by
    one."""
    inputs: Callable[[Any], Iterable[str | None]] = lambda _: ()
    "What the config names beside artifacts: folders, files, hub ids. What lies there is part of the artifact's identity."


OpenRun = Callable[[Stage, Any, tuple[Artifact, ...]], AbstractContextManager[Run]]


def run_stage(stage: Stage, config: Any, open_run: OpenRun, say: Callable[[str], None] = say) -> Artifact:
    """Build what `config` describes, or return it when it exists. Of several processes the first calls it.

    Raises ArtifactError when the ref exists with another config or a parent is missing.
    """
    if said := guess_root(config.storage.root):
        say(said)
    with doing("checking the config and what it names"):
        store, ref, (parents, inputs), existing = _resolve(stage, config)
    if existing is None:
        with Lease(store.lease(ref), str(ref), say):
            existing = store.find(ref, config, parents, inputs)  # another process may have finished it just now
            if existing is None:
                draft = store.begin(ref, config, parents, inputs, stage.job)
                return _build(stage, config, draft, open_run, say)
    gone = [file for file in existing.manifest.get("inputs", ()) if file not in inputs]
    are = f"{len(gone)} {'is' if len(gone) == 1 else 'are'} gone, first {gone[0]}" if gone else ""
    say(f"{ref} exists, nothing to do" + (f"; of the files that it was made from {are}" if gone else ""))
    return existing


def _build(stage: Stage, config: Any, draft: Draft, open_run: OpenRun, say: Callable[[str], None]) -> Artifact:
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


def join_stage(stage: Stage, config: Any) -> None:
    """Be one of the other processes that torchrun started: check what the first does, share its work, write and track nothing."""
    with first_speaks():
        store, ref, origin, existing = _resolve(stage, config)
        if existing is not None:
            return
        draft = store.check_begun(ref, config, *origin)
    assert stage.join is not None  # `_resolve` has seen to it
    stage.join(config, draft)


Origin = tuple[tuple[Artifact, ...], dict[str, str]]
"The parents of an artifact and the digests of its inputs."


def _resolve(stage: Stage, config: Any) -> tuple[Store, Ref, Origin, Artifact | None]:
    """Return where an artifact is to be, what it is made from, and itself when it exists; refuse what cannot be built."""
    if stage.join is None:
        check_alone(stage.job)
    check_together(config.cluster.num_workers, config.cluster.num_nodes)
    check_reachable(config)
    check_gpus(config.cluster)
    store = Store(config.storage.root)
    ref = Ref(stage.kind, config.name, config.version)
    parents = tuple(store.open(parent) for parent in stage.parents(config))
    inputs = digest_inputs(place for place in stage.inputs(config) if place and not Ref.looks_like(place))
    existing = store.find(ref, config, parents, inputs)
    if existing is None and stage.check is not None:
        stage.check(config, store)
    return store, ref, (parents, inputs), existing


def guess_root(root: str) -> str:
    """Return what to say of a root that nobody gave a job that was sent to a cluster; nothing of any other.

    `ray job submit` leaves the sender's environment behind.
    """
    is_sent = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    if not is_sent or "LISAN_HOME" in os.environ or root != default_root():
        return ""
    return (
        f"  storage.root is {root}, because the cluster knows no LISAN_HOME; give storage.root=... where `ray job submit` "
        "was to use another"
    )


def check_gpus(cluster: ClusterConfig) -> None:
    """Refuse GPUs that are not there where this machine is the cluster, before anything is read or Ray is started."""
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


def check_reachable(config: Any) -> None:
    """Refuse a local root where several nodes must share it, and an object store that does not answer."""
    if config.cluster.num_nodes > 1 and "://" not in config.storage.root:
        raise ConfigError(
            f"storage.root {config.storage.root} is a local path but cluster.num_nodes is {config.cluster.num_nodes}; "
            "set it to storage that every node reaches: s3://bucket/prefix, or file:///mount for a shared file system"
        )
    check_root(config.storage.root)
