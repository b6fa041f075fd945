"""The three training stages: what each trains on, with which objective, from which model, to which model.

In: a config, a tokens artifact and a model. Out: a `model` artifact: a Hugging Face folder with weights, tokenizer,
chat template and generation defaults. Always: `run_worker(job, worker)` is all that a process does, whoever started
it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import Any

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import Run, Stage, StageConfig
from lisan.core.storage import Location
from lisan.model.adapter import LoraConfig
from lisan.model.load import ModelConfig
from lisan.model.parallel import Precision, shard
from lisan.model.score import Batch, Scorer
from lisan.tokens.mix import MixConfig, make_plan
from lisan.tokens.rows import RowReader, Rows
from lisan.train import objectives
from lisan.train.loop import Course, LoopConfig, check_rows, train
from lisan.train.optim import OptimConfig, make_optimizer
from lisan.train.outcome import Places, check_vocabulary, open_places, prepare_model, write_model
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

    def num_steps(self, reader: RowReader) -> int:
        weights = self.config.mix.weights
        rows = sum(count for source, count in reader.num_rows.items() if not weights or weights.get(source))
        return self.config.loop.steps(rows)


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
    num_steps = job.num_steps(reader)
    plan = make_plan(reader.num_rows, config.mix, num_steps * config.loop.step_rows)
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


def build(config: TrainConfig, draft: Draft, run: Run) -> dict[str, Any]:
    """Start the workers that the cluster config asks for and return what they measured."""
    from lisan.train.launch import launch

    tokens = draft.parent(Kind.tokens)
    job = TrainJob(
        config, tokens, open_places(config, draft.parents), draft.store.checkpoints(draft.ref), draft.location, run
    )
    metrics = launch(job)
    if not (draft.location / "config.json").exists():
        raise DataError(f"{draft.ref} trained without leaving a model; see the workers' log")
    reader = RowReader(tokens)
    num_steps = job.num_steps(reader)
    num_rows = num_steps * config.loop.step_rows
    epochs = make_plan(reader.num_rows, config.mix, num_rows).epochs(num_rows)
    mix = {source: round(passes * reader.num_rows[source]) * reader.context_length for source, passes in epochs.items()}
    return {
        **metrics,
        "steps": num_steps,
        "tokens_seen": num_rows * reader.context_length,
        "mix": mix,
        "epochs": epochs,
        "checkpoint": _last_checkpoint(job),
    }


def _last_checkpoint(job: TrainJob) -> dict[str, Any]:
    from lisan.train.checkpoint import find_latest

    latest = find_latest(job.checkpoints)
    assert latest is not None
    return {"step": latest.step, "uri": str(latest.location), "bytes": latest.num_bytes, "sha256": latest.digest}


def check(config: TrainConfig, store: Store) -> None:
    """Refuse, before a worker starts, what cannot train: rows that do not divide, tokens of another vocabulary, a wrong mix."""
    check_rows(config.loop, max(1, config.cluster.num_workers))
    tokens = store.open(Ref.parse(config.tokens, Kind.tokens))
    wanted = "preferences" if isinstance(config, DpoConfig) else None
    kind = tokens.facts["record_kind"]
    if (kind == "preferences") != (wanted == "preferences"):
        raise ConfigError(
            f"{tokens.ref} holds {kind}; train_dpo needs preferences and the others need documents or conversations"
        )
    parents = tuple(store.open(ref) for ref in parents_of(config))
    check_vocabulary(config, tokens, parents)
    job = TrainJob(config, tokens, Places("", ""), store.root, store.root, None)  # type: ignore[arg-type]
    reader = RowReader(tokens)
    make_plan(reader.num_rows, config.mix, job.num_steps(reader) * config.loop.step_rows)


def parents_of(config: TrainConfig) -> tuple[Ref, ...]:
    refs = [Ref.parse(config.tokens, Kind.tokens)]
    refs += [Ref.parse(text) for text in (config.model.path, config.model.tokenizer) if text and Ref.looks_like(text)]
    return tuple(refs)


CPT = Stage("train_cpt", Kind.model, TrainConfig, parents_of, build, check)
SFT = Stage("train_sft", Kind.model, TrainConfig, parents_of, build, check)
DPO = Stage("train_dpo", Kind.model, DpoConfig, parents_of, build, check)
