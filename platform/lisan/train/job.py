"""A training run, resolved, and what one process of it does.

In: the config of a training stage and where its parents lie. Out: `run_worker(job, worker)`, which is all that a process does,
whoever started it: Ray Train, torchrun or a test.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from lisan.core.artifact import Artifact
from lisan.core.errors import ConfigError
from lisan.core.stage import Run, StageConfig
from lisan.core.storage import Location
from lisan.model.adapter import LoraConfig
from lisan.model.load import ModelConfig
from lisan.model.parallel import Precision, shard
from lisan.model.score import Batch, Scorer
from lisan.tokens.mix import MixConfig, Plan, make_plan
from lisan.tokens.rows import RowReader, Rows
from lisan.train import objectives
from lisan.train.loop import Course, LoopConfig, check_rows, train
from lisan.train.optim import OptimConfig, make_optimizer
from lisan.train.outcome import Places, prepare_model, write_model
from lisan.train.reference import attach_reference, score_reference
from lisan.train.worker import ProcessGroup, Worker


class Method(StrEnum):
    full = "full"
    lora = "lora"


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningConfig:
    method: Method = Method.full
    lora: LoraConfig = field(default_factory=LoraConfig)
    "Used by method=lora; merged into the model at the end."


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig(StageConfig):
    """What continued pretraining, fine-tuning and preference training share."""

    tokens: str
    "tokens/name@version"
    model: ModelConfig
    mix: MixConfig = field(default_factory=MixConfig)
    tuning: TuningConfig = field(default_factory=TuningConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    precision: Precision = Precision.bfloat16
    "Of the computation; master weights, gradients' reductions and optimizer state are fp32."
    save_precision: Precision = Precision.bfloat16
    "Of the finished model's weights."

    def __post_init__(self) -> None:
        if self.tuning.method is Method.lora and self.model.path is None:
            raise ConfigError(
                "tuning=lora adapts a model; set model.path, or train from random weights with tuning=full"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig(TrainConfig):
    beta: float = 0.1
    "Strength of the pull towards the reference model."
    label_smoothing: float = 0.0
    "Share of preferences taken to be the wrong way round."

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"beta must be > 0 and label_smoothing in 0..0.5, got {self.beta} and {self.label_smoothing}"
            )
        if self.model.path is None:
            raise ConfigError("train_dpo needs model.path: preferences are learned against a reference model")


@dataclass(frozen=True)
class TrainJob:
    """A training run, resolved: everything a worker needs, wherever it runs."""

    config: TrainConfig
    tokens: Artifact
    places: Places
    checkpoints: Location
    output: Location
    run: Run


def plan_run(config: TrainConfig, reader: RowReader) -> tuple[int, Plan]:
    """Return how many steps the run takes and which rows it reads; ConfigError when the rows cannot feed the mix."""
    weights = config.mix.weights
    num_rows = sum(count for source, count in reader.num_rows.items() if not weights or weights.get(source))
    num_steps = config.loop.steps(num_rows)
    return num_steps, make_plan(reader.num_rows, config.mix, num_steps * config.loop.step_rows)


def run_worker(job: TrainJob, worker: Worker) -> dict[str, float]:
    """Train on this process's share of the rows; the first rank writes the model. Returns the last metrics."""
    config = job.config
    check_rows(config.loop, worker.world_size)
    with ProcessGroup(worker, config.cluster.collective_timeout_s):
        reader = RowReader(job.tokens)
        adapted = prepare_model(config, job.places)
        scorer = shard(Scorer(adapted.model), worker.device, config.precision)
        optimizer = make_optimizer(scorer, config.optim)
        course = make_course(job, reader, scorer, worker)
        metrics = train(scorer, optimizer, course, worker)
        write_model(config, job.places, scorer, job.output, worker)
    return metrics


def make_course(job: TrainJob, reader: RowReader, scorer: Scorer, worker: Worker) -> Course:
    config = job.config
    num_steps, plan = plan_run(config, reader)
    objective: Callable[[Scorer, Batch, Rows], objectives.Loss] = _causal_lm
    count = objectives.count_labels
    if isinstance(config, DpoConfig):
        reference = score_reference(scorer, reader, config.loop.micro_rows, job.checkpoints, worker)
        objective = partial(_preference, reference=reference, config=config)
        count = objectives.count_pairs
    return Course(config.loop, config.optim, num_steps, reader, plan, objective, count, job.checkpoints, job.run)


def _causal_lm(scorer: Scorer, batch: Batch, rows: Rows) -> objectives.Loss:  # noqa: ARG001
    return objectives.causal_lm(scorer, batch)


def _preference(
    scorer: Scorer, batch: Batch, rows: Rows, reference: dict[int, tuple[float, ...]], config: DpoConfig
) -> objectives.Loss:
    logps = attach_reference(rows, reference).to(batch.input_ids.device)
    return objectives.preference(scorer, batch, logps, config.beta, config.label_smoothing)
