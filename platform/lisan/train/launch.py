"""Starts the workers of a training run on Ray Train.

A worker group that dies restarts from its last checkpoint, up to `cluster.max_failures` times, unless all workers raised the same
deterministic error.
"""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from lisan.cluster.worker import Worker, never, share_threads
from lisan.core.errors import ClusterError, ConfigError, Interrupted, LisanError, TrainingError
from lisan.core.stage import ClusterConfig
from lisan.train.checkpoint.retention import next_start
from lisan.train.checkpoint_validation import Validator
from lisan.train.deterministic_errors import FINAL, is_unanimous
from lisan.train.run import TrainJob, plan_run, run_worker

Validate = Callable[[int], dict[str, float]]


def launch_on_ray(job: TrainJob) -> dict[str, float]:
    """Train on `cluster.num_workers` Ray Train workers and return the last metrics of the first."""
    from lisan.cluster.ray import RAY_LOGS, connect, mute_workers, reason_of
    from lisan.train.ray_state import RunState, fit

    cluster = job.config.cluster
    connect(cluster)
    check_capacity(cluster, num_validators=int(job.config.validation.asynchronous))
    # Ray's list of checkpoints of an earlier launch; the loop resumes from the checkpoints on storage instead.
    (job.checkpoints / "checkpoint_manager_snapshot.json").delete()
    state = RunState()
    with _validator(job) as validate:
        trainer = _make_trainer(job, partial(_on_worker, job, validate, state), state)
        try:
            result = fit(trainer, state, cluster.num_workers)
        except ClusterError:
            raise
        except Exception as error:
            raise TrainingError(
                f"{reason_of(error)} (traces lie in {RAY_LOGS}/train of the worker's machine)"
            ) from error
    outcome: dict[str, float] | LisanError = result.return_value or {}
    if isinstance(outcome, LisanError):
        if isinstance(outcome, Interrupted):
            mute_workers()
        raise outcome
    return outcome


def _make_trainer(job: TrainJob, on_worker: Callable[[], object], state: Any) -> Any:
    """Return the Ray Train trainer of a run; its workers stream rows through Ray Data."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from lisan.train.ray_state import Restarts

    cluster, folder = job.config.cluster, job.checkpoints
    return TorchTrainer(
        on_worker,
        scaling_config=ScalingConfig(
            num_workers=cluster.num_workers,
            use_gpu=cluster.use_gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker, **({"GPU": 1.0} if cluster.use_gpu else {})},
            placement_strategy="SPREAD" if cluster.num_nodes > 1 else "PACK",
        ),
        torch_config=TorchConfig(
            backend="cpu:gloo,cuda:nccl" if cluster.use_gpu else "gloo",
            timeout_s=job.config.runtime.collective_timeout_s,
        ),
        run_config=RunConfig(
            name=folder.name,
            storage_path=folder.parent.full_path,
            storage_filesystem=folder.parent.file_system,
            logging_config=LoggingConfig(log_level="ERROR"),
            failure_config=FailureConfig(max_failures=cluster.max_failures),
            callbacks=[Restarts(state, folder, cluster.max_failures)],
        ),
        **_stream_options(job),
    )


def _stream_options(job: TrainJob) -> dict[str, Any]:
    """Return the trainer's options for its row stream; none with tensor parallelism.

    Ray Data gives a block to one worker only: tensor parallel workers, which compute the same rows, read them themselves.
    """
    from lisan.data.ray_stream import STREAM, PlanDataConfig, StreamPlan, placeholder

    num_steps, order = plan_run(job.config, job.tokens)  # refuses rows that cannot feed the mix before a worker starts
    if job.config.sharding.tensor_parallel_size > 1:
        return {}
    stream = StreamPlan(order, num_steps, partial(next_start, job.checkpoints))
    return {"datasets": {STREAM: placeholder()}, "dataset_config": PlanDataConfig(stream)}


@contextmanager
def _validator(job: TrainJob) -> Iterator[Validate | None]:
    """Start an actor that validates checkpoints during the run; yields None without asynchronous validation.

    Ray Train's own `ValidationConfig` is not used: in 2.60 a validation whose process keeps being killed ends the run
    (its controller catches `RayTaskError` only), checkpoints wait for theirs in a queue without end while `remove_old` deletes
    them, and the losses reach the controller but neither the tracker nor the choice of the best. An actor also loads the model
    once instead of once for every checkpoint.
    """
    if not job.config.validation.asynchronous:
        yield None
        return
    import ray

    cluster = job.config.cluster
    threads = share_threads(cluster, cluster.num_workers // cluster.num_nodes)
    worker = Worker(device="cuda:0" if cluster.use_gpu else "cpu", threads=threads)
    actor = (
        ray.remote(Validator)
        .options(
            # No logical CPU where there are no GPUs: two cores hold two workers and their data, a third share would wait for ever.
            num_cpus=cluster.cpus_per_worker if cluster.use_gpu else 0,
            num_gpus=int(cluster.use_gpu),
            max_restarts=cluster.max_failures,
        )
        .remote(job, worker)
    )
    try:
        yield partial(_validate, actor, job.config.runtime.validation_timeout_s)
    finally:
        ray.kill(actor)


def _validate(actor: Any, timeout_s: float, step: int) -> dict[str, float]:
    """Return the losses of the checkpoint of a step; a failed validation prints one line, and training continues."""
    import ray
    from ray.exceptions import GetTimeoutError, RayError, RayTaskError

    from lisan.cluster.ray import reason_of

    try:
        losses: dict[str, float] = ray.get(actor.measure.remote(step), timeout=timeout_s)
    except RayError as error:
        # The error of a task has our class too, but its text is the whole traceback.
        reason = reason_of(error.cause if isinstance(error, RayTaskError) else error)
        if isinstance(error, GetTimeoutError):
            reason = f"it took longer than runtime.validation_timeout_s={timeout_s:g}; raise that, or lower validation.num_rows"
        print(f"  step {step} is not validated, training goes on: {reason}", flush=True)
        if isinstance(error, GetTimeoutError):
            ray.kill(actor, no_restart=False)  # for the next checkpoint, which would wait behind this one
        return {}
    return losses


def _on_worker(job: TrainJob, validate: Validate | None, state: Any) -> dict[str, float] | LisanError:
    """Run one Ray Train worker; an error that all workers raise is returned, because Ray restarts workers that raise."""
    try:
        return run_worker(job, _describe_worker(job, validate, state))
    except Interrupted as error:
        return error
    except FINAL as error:
        if not is_unanimous(error):
            raise
        return error


def _describe_worker(job: TrainJob, validate: Validate | None, state: Any) -> Worker:
    import ray.train
    from ray._private.log import PlainRayHandler
    from ray.train.torch import get_device
    from ray.train.v2._internal.execution.context import logger as report_log

    from lisan.data.ray_stream import STREAM, iterate_rows
    from lisan.train.ray_state import Listener

    report_log.setLevel(logging.WARNING)  # it prints every report with all its metrics
    for handler in logging.getLogger("ray.train").handlers:
        if isinstance(handler, PlainRayHandler):
            handler.setLevel(logging.CRITICAL)  # traces stay in Ray's files; the driver prints the sentence
    context = ray.train.get_context()
    cluster = job.config.cluster
    is_interrupted = never
    if context.get_world_rank() == 0:
        state.begin_speaking()
        is_interrupted = Listener(state)
    stream = None
    if job.config.sharding.tensor_parallel_size == 1:
        share = job.config.loop.step_rows // context.get_world_size()
        stream = partial(iterate_rows, ray.train.get_dataset_shard(STREAM), share)
    return Worker(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        local_rank=context.get_local_rank(),
        device=str(get_device()),
        threads=share_threads(cluster, context.get_local_world_size()),
        report=partial(_report, job),
        stream=stream,
        validate=validate,
        is_interrupted=is_interrupted,
        collective_timeout_s=job.config.runtime.collective_timeout_s,
        step_timeout_s=job.config.runtime.step_timeout_s,
    )


def _report(job: TrainJob, metrics: Mapping[str, float], checkpoint: str | None) -> None:
    """Report a checkpoint to Ray Train without uploading it: it is in its final folder already."""
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


def check_capacity(cluster: ClusterConfig, num_validators: int = 0) -> None:
    """Refuse more workers than the cluster can ever place: Ray would wait for them without end.

    A validator is one more of them where there are GPUs.
    """
    import ray

    have = ray.cluster_resources()
    num_places = cluster.num_workers + num_validators * cluster.use_gpu
    beside = " and the validator (validation.asynchronous=true)" if num_places > cluster.num_workers else ""
    for name, need in (("GPU", num_places * cluster.use_gpu), ("CPU", num_places * cluster.cpus_per_worker)):
        if need > have.get(name, 0):
            raise ConfigError(
                f"cluster needs {need:g} {name} for {cluster.num_workers} workers{beside}, the Ray cluster has "
                f"{have.get(name, 0):g}; choose a smaller cluster preset or add nodes"
            )
