"""One process of a training run: `run_worker(job, worker)`, started by Ray Train, torchrun, a job or a test."""

import os
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial

import torch

from lisan.cluster.worker import ProcessGroup, Worker, agree_on_precision, worker_from_environment
from lisan.core.artifact import Artifact, Kind
from lisan.core.errors import ConfigError
from lisan.core.progress import say
from lisan.core.stage import ClusterConfig, Run
from lisan.core.storage import Location
from lisan.data.row_order import RowOrder, open_order
from lisan.data.rows import RowBatch, RowReader
from lisan.model.attention.packed import check_attention
from lisan.model.embeddings.trained_rows import freeze_other_rows
from lisan.model.float8 import check_float8, use_float8
from lisan.model.leakage import check_documents_apart
from lisan.model.parallel.fsdp import check_compiler, check_sharding, shard
from lisan.model.score import Scorer
from lisan.model.weights.finite import check_finite
from lisan.model.weights.load_shards import load_shards
from lisan.train.config import DpoConfig, TrainConfig
from lisan.train.loop import check_rows, train
from lisan.train.metrics.mfu import make_mfu
from lisan.train.metrics.run_header import HeaderFacts, describe_run
from lisan.train.metrics.run_log import RunLog
from lisan.train.objectives import CausalLm, Objective, PreferencePairs, Terms
from lisan.train.optim import make_optimizer
from lisan.train.options import PreferenceLoss, RuntimeConfig
from lisan.train.plan import TrainPlan
from lisan.train.preference.kto import MismatchedReader, estimate_kl
from lisan.train.preference.reference import (
    MISMATCHED,
    REFERENCE,
    Reference,
    check_precision,
    check_reference,
    read_reference,
    score_reference,
)
from lisan.train.setup.base_model import Adapted, Places, open_places, outline
from lisan.train.setup.build_model import write_model
from lisan.train.validation import measure_losses


@dataclass(frozen=True)
class TrainJob:
    """A training run with its artifacts found: everything that a worker needs."""

    config: TrainConfig
    tokens: Artifact
    parents: tuple[Artifact, ...]
    "Every worker fetches their files to its own machine."
    checkpoints: Location
    output: Location
    run: Run


def local_worker(cluster: ClusterConfig, runtime: RuntimeConfig | None = None) -> Worker:
    """Return the worker of this process without Ray: one of torchrun's, or the only one."""
    runtime = runtime or RuntimeConfig()
    if cluster.use_gpu and not torch.cuda.is_available():
        raise ConfigError("cluster.use_gpu is true but this process sees no GPU; choose cluster=local for the CPU")
    return replace(
        worker_from_environment(),
        threads=cluster.threads_per_worker,
        step_timeout_s=runtime.step_timeout_s if "TORCHELASTIC_RUN_ID" in os.environ else 0,
        collective_timeout_s=runtime.collective_timeout_s,
    )


def plan_run(config: TrainConfig, tokens: Artifact) -> tuple[int, RowOrder]:
    """Return the number of steps and the row order; ConfigError when the rows cannot feed the mix."""
    sources = tokens.facts["sources"]
    num_rows = sum(facts["rows"] for source, facts in sources.items() if config.mix.reads(source))
    num_steps = config.loop.steps(num_rows)
    return num_steps, open_order(tokens, config.mix, num_steps, config.loop.step_rows)


def run_worker(job: TrainJob, worker: Worker) -> dict[str, float]:
    """Train on this process's share of the rows; the first rank writes the model. Returns the last metrics."""
    config = job.config
    check_sharding(config.sharding, worker.world_size, config.cluster.num_nodes)
    check_rows(config.loop, worker.world_size, config.sharding.tensor_parallel_size)
    check_compiler(config.sharding, worker.device)
    worker = replace(worker, tensor_parallel_size=config.sharding.tensor_parallel_size)
    with worker.doing("meeting the other workers"), ProcessGroup(worker, config.runtime.collective_timeout_s):
        resolved = agree_on_precision(config.precision, worker)
        worker = replace(worker, precision=resolved.precision)
        if worker.is_first:
            say(f"  {resolved}")
            job.run.log_tag("precision", str(resolved.precision))
        with worker.doing("loading the model"):
            places = open_places(config, job.parents)
            adapted, scorer = open_scorer(config, places, worker)
            optimizer = make_optimizer(scorer, config.optim, freeze_other_rows(scorer.model, adapted.rows))
        with worker.doing("preparing the rows"):
            plan = make_plan(job, scorer, worker)
        with closing(plan.progress):
            metrics = train(scorer, optimizer, plan, worker)
        with worker.doing("writing the model"):
            write_model(config, places, adapted, scorer, job.output, worker)
    return metrics


def open_scorer(config: TrainConfig, places: Places, worker: Worker) -> tuple[Adapted, Scorer]:
    """Return the adapted, sharded model at the start of a run, after the leakage probe."""
    check_attention(config.attention, worker.device, worker.precision.dtype)
    if config.float8:
        check_float8(worker.device)
    adapted = outline(config, places)
    if config.float8:
        use_float8(adapted.model)
    scorer = Scorer(adapted.model, config.attention)
    shard(scorer, worker.device, worker.precision, config.sharding, config.cluster.num_nodes)
    load_shards(adapted.model, adapted.sources)
    check_finite(adapted.model, places.model or "the model of model.shape")
    check_documents_apart(scorer, worker.device, worker.precision.dtype)
    return adapted, scorer


def make_plan(job: TrainJob, scorer: Scorer, worker: Worker) -> TrainPlan:
    config = job.config
    num_steps, order = plan_run(config, job.tokens)
    objective = make_objective(job, scorer, worker)
    has_kl = isinstance(objective, PreferencePairs) and objective.estimate_kl is not None
    mfu = make_mfu(scorer, worker, config.runtime.peak_tflops, extra_forwards=int(has_kl))
    header = describe_run(config, scorer, worker, HeaderFacts(num_steps, order, mfu)) if worker.is_first else None
    return TrainPlan(
        config=config.loop,
        optim=config.optim,
        num_steps=num_steps,
        order=order,
        objective=objective,
        checkpoints=job.checkpoints,
        log=RunLog(job.run, job.checkpoints, header) if header else None,
        mfu=mfu,
        validate=None if config.validation.asynchronous else make_validation(job, worker),
        validate_every=config.validation.every,
    )


def make_objective(job: TrainJob, scorer: Scorer, worker: Worker) -> Objective:
    """Return the objective of the config; a preference objective first scores the reference where no scores are given."""
    config = job.config
    if not isinstance(config, DpoConfig):
        return CausalLm(config.optim.z_loss)
    reference = find_reference(job, scorer, RowReader(job.tokens), "", worker)
    terms = Terms(config.loss, config.beta, config.label_smoothing, config.length_normalised)
    needs_kl = config.loss is PreferenceLoss.kto
    return PreferencePairs(reference, terms, make_kl_estimate(job, scorer, worker) if needs_kl else None)


def make_validation(job: TrainJob, worker: Worker) -> Callable[[Scorer], dict[str, float]] | None:
    """Return the function that measures losses on the held-out rows of the config; None without any."""
    config = job.config
    if config.validation.tokens is None:
        return None
    [held_out] = [parent for parent in job.parents if str(parent.ref) == config.validation.tokens]
    return partial(
        measure_losses,
        reader=RowReader(held_out),
        num_rows=config.validation.num_rows,
        micro_rows=config.loop.micro_rows,
        worker=worker,
    )


def make_kl_estimate(job: TrainJob, scorer: Scorer, worker: Worker) -> Callable[[Scorer, Sequence[RowBatch]], float]:
    """Score the exchanged replies of every row with the reference; return the function that estimates KTO's KL of a step."""
    reader = MismatchedReader(job.tokens)
    reference = find_reference(job, scorer, reader, MISMATCHED, worker)
    return partial(estimate_kl, reader=reader, reference=reference, device=worker.device)


def find_reference(job: TrainJob, scorer: Scorer, reader: RowReader, folder: str, worker: Worker) -> Reference:
    """Return the scores that the config names, or score with the untrained model."""
    given = next((parent for parent in job.parents if parent.ref.kind is Kind.scores), None)
    if given is None:
        return score_reference(scorer, reader, job.config.loop.micro_rows, job.checkpoints / folder, worker)
    check_precision(given, worker.precision)
    reference = read_reference(given.location, f"{folder}/{REFERENCE}" if folder else REFERENCE)
    check_reference(scorer, reader, reference, given, worker.device)
    return reference
