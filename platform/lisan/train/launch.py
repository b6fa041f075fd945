"""Workers for a training job: Ray Train on a cluster, or this very process.

In: a `TrainJob`. Out: the last metrics of rank 0. Always: a worker group that dies is restarted from its last
checkpoint, up to `cluster.max_failures` times; the failure that remains is one sentence.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from lisan.core.errors import ConfigError, LisanError, TrainingError
from lisan.train.checkpoint import next_start
from lisan.train.job import TrainJob, plan_run, run_worker
from lisan.train.worker import Worker, worker_from_environment


def launch(job: TrainJob) -> dict[str, float]:
    """Run the job where its cluster config says."""
    cluster = job.config.cluster
    if cluster.use_gpu and cluster.num_workers == 0 and not torch.cuda.is_available():
        raise ConfigError("cluster.use_gpu is true but this process sees no GPU; choose cluster=local for the CPU")
    if cluster.num_workers == 0:
        watched = cluster.step_timeout_s if "TORCHELASTIC_RUN_ID" in os.environ else 0
        worker = replace(worker_from_environment(), step_timeout_s=watched)
        return run_worker(job, replace(worker, collective_timeout_s=cluster.collective_timeout_s))
    return _launch_on_ray(job)


def _launch_on_ray(job: TrainJob) -> dict[str, float]:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lisan.session import connect
    from lisan.tokens.stream import STREAM, PlanDataConfig, StreamPlan, placeholder

    config, cluster = job.config, job.config.cluster
    connect(cluster)
    check_capacity(cluster)
    num_steps, order = plan_run(config, job.tokens)
    streamed: dict[str, Any] = {}
    # Ray Data hands a block to one worker only: workers that compute the same rows together read them themselves.
    if config.sharding.tensor_workers == 1:
        stream = StreamPlan(order, num_steps, partial(next_start, job.checkpoints))
        streamed = {"datasets": {STREAM: placeholder()}, "dataset_config": PlanDataConfig(stream)}
    resources = {"CPU": cluster.cpus_per_worker, **({"GPU": 1.0} if cluster.use_gpu else {})}
    place = job.checkpoints
    # Ray's own list of checkpoints of an earlier launch; the loop resumes from and lets go of them by what lies on storage.
    (place / "checkpoint_manager_snapshot.json").delete()
    parent = type(place)(place.root, place.path.rpartition("/")[0])
    trainer = TorchTrainer(
        partial(_on_worker, job),
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker=resources,
            placement_strategy="SPREAD" if cluster.num_nodes > 1 else "PACK",
        ),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if cluster.use_gpu else "gloo", timeout_s=cluster.collective_timeout_s
        ),
        run_config=RunConfig(
            name=place.name,
            storage_path=parent.full_path,
            storage_filesystem=parent.file_system,
            logging_config=LoggingConfig(log_level="ERROR"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
        ),
        **streamed,
    )
    try:
        result = trainer.fit()
    except Exception as error:
        raise TrainingError(_reason(error)) from error
    metrics: dict[str, float] = result.return_value or {}
    return metrics


def _on_worker(job: TrainJob) -> dict[str, float]:
    """Be one Ray Train worker."""
    import ray.train
    from ray.train.torch import get_device
    from ray.train.v2._internal.execution.context import logger as report_log

    from lisan.tokens.stream import STREAM, iterate_rows

    report_log.setLevel(logging.WARNING)  # it prints every report with all its metrics
    context = ray.train.get_context()
    cluster = job.config.cluster
    cores = os.cpu_count() or 1
    stream = None
    if job.config.sharding.tensor_workers == 1:
        share = job.config.loop.step_rows // context.get_world_size()
        stream = partial(iterate_rows, ray.train.get_dataset_shard(STREAM), share)
    worker = Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=str(get_device()),
        threads=cluster.threads_per_worker
        or (0 if cluster.use_gpu else max(1, cores // context.get_local_world_size())),
        report=partial(_report, job),
        stream=stream,
        collective_timeout_s=cluster.collective_timeout_s,
        step_timeout_s=cluster.step_timeout_s,
    )
    return run_worker(job, worker)


def _report(job: TrainJob, metrics: Mapping[str, float], checkpoint: str | None) -> None:
    """Tell Ray Train of a checkpoint that already lies in its place."""
    import ray.train
    from ray.train import Checkpoint, CheckpointUploadMode

    if checkpoint is None:
        return
    place = job.checkpoints / checkpoint.rpartition("/")[2]
    ray.train.report(
        dict(metrics),
        checkpoint=Checkpoint(place.full_path, filesystem=place.file_system),
        checkpoint_dir_name=place.name,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
    )


def check_capacity(cluster: Any) -> None:
    """Refuse more workers than the cluster can ever place: Ray would wait for them without end."""
    import ray

    have = ray.cluster_resources()
    for name, need in (
        ("GPU", cluster.num_workers * cluster.use_gpu),
        ("CPU", cluster.num_workers * cluster.cpus_per_worker),
    ):
        if need > have.get(name, 0):
            raise ConfigError(
                f"cluster needs {need:g} {name} for {cluster.num_workers} workers, the Ray cluster has "
                f"{have.get(name, 0):g}; choose a smaller cluster preset or add nodes"
            )


def _reason(error: BaseException) -> str:
    """Find our own sentence in what a worker raised; otherwise name the first failure."""
    causes = [*getattr(error, "worker_failures", {}).values(), error]
    for cause in causes:
        inner: BaseException | None = cause
        while inner is not None:
            if isinstance(inner, LisanError):
                return str(inner)
            inner = getattr(inner, "cause", None) or inner.__cause__
    first = causes[0]
    return f"{type(first).__name__}: {str(first).strip().splitlines()[-1] if str(first).strip() else 'no message'}"
