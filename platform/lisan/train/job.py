"""A training run, resolved, and what one process of it does.

In: the config of a training stage and where its parents lie. Out: `run_worker(job, worker)`, which is all that a process does,
whoever started it: Ray Train, torchrun or a test.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from lisan.core.artifact import Artifact, Kind
from lisan.core.errors import ConfigError
from lisan.core.stage import Run, StageConfig
from lisan.core.storage import Location
from lisan.model.adapter import LoraConfig
from lisan.model.attention import Attention, check_attention, use_attention
from lisan.model.leakage import check_documents_apart
from lisan.model.load import ModelConfig
from lisan.model.parallel import Precision, shard
from lisan.model.score import Batch, Scorer
from lisan.tokens.mix import MixConfig
from lisan.tokens.order import RowOrder, open_order
from lisan.tokens.rows import RowReader, Rows
from lisan.train import objectives
from lisan.train.kto_anchor import MismatchedReader, estimate_kl
from lisan.train.loop import Course, LoopConfig, check_rows, train
from lisan.train.objectives import PreferenceLoss, Terms
from lisan.train.optim import OptimConfig, make_optimizer
from lisan.train.outcome import open_places, prepare_model, write_model
from lisan.train.reference import (
    MISMATCHED,
    REFERENCE,
    Reference,
    attach_reference,
    check_reference,
    read_reference,
    score_reference,
)
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
    attention: Attention = Attention.sdpa
    "How the documents of a row are kept apart: sdpa everywhere; flex or flash for long rows on a GPU, not yet tried on one."

    def __post_init__(self) -> None:
        if self.tuning.method is Method.lora and self.model.path is None:
            raise ConfigError(
                "tuning=lora adapts a model; set model.path, or train from random weights with tuning=full"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class DpoConfig(TrainConfig):
    loss: PreferenceLoss = PreferenceLoss.sigmoid
    beta: float = 0.1
    "Strength of the pull towards the reference model."
    label_smoothing: float = 0.0
    "Share of preferences taken to be the wrong way round; loss=sigmoid only."
    length_normalised: bool = False
    "Whether log-probabilities are means per token instead of sums, which takes the advantage from long replies; not with kto."
    reference: str | None = None
    "scores/name@version that score_preferences made; null lets the workers score the rows before their first step."

    def __post_init__(self) -> None:
        TrainConfig.__post_init__(self)
        if not self.beta > 0 or not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"beta must be > 0 and label_smoothing in 0..0.5, got {self.beta} and {self.label_smoothing}"
            )
        if self.label_smoothing and self.loss is not PreferenceLoss.sigmoid:
            raise ConfigError(
                f"label_smoothing={self.label_smoothing} has no effect on loss={self.loss}; set it to 0, or take loss=sigmoid"
            )
        if self.length_normalised and self.loss is PreferenceLoss.kto:
            raise ConfigError(
                "length_normalised has no effect on loss=kto, which judges whole replies against a KL divergence of whole "
                "replies; leave it out, or take loss=sigmoid or ipo"
            )
        if self.optim.z_loss:
            raise ConfigError(f"optim.z_loss={self.optim.z_loss} has no effect on preferences; set it to 0")
        if self.model.path is None:
            raise ConfigError("train_dpo needs model.path: preferences are learned against a reference model")


@dataclass(frozen=True)
class TrainJob:
    """A training run, resolved: everything a worker needs, wherever it runs."""

    config: TrainConfig
    tokens: Artifact
    parents: tuple[Artifact, ...]
    "Every worker fetches what it starts from to its own machine."
    checkpoints: Location
    output: Location
    run: Run


def plan_run(config: TrainConfig, tokens: Artifact) -> tuple[int, RowOrder]:
    """Return how many steps the run takes and which rows it reads; ConfigError when the rows cannot feed the mix."""
    sources = tokens.facts["sources"]
    num_rows = sum(facts["rows"] for source, facts in sources.items() if config.mix.reads(source))
    num_steps = config.loop.steps(num_rows)
    return num_steps, open_order(tokens, config.mix, num_steps, config.loop.step_rows)


def run_worker(job: TrainJob, worker: Worker) -> dict[str, float]:
    """Train on this process's share of the rows; the first rank writes the model. Returns the last metrics."""
    config = job.config
    check_rows(config.loop, worker.world_size)
    with ProcessGroup(worker, config.cluster.collective_timeout_s):
        check_attention(config.attention, worker.device, config.precision.dtype)
        places = open_places(config, job.parents)
        adapted = prepare_model(config, places)
        use_attention(adapted.model, config.attention)
        scorer = shard(Scorer(adapted.model), worker.device, config.precision)
        check_documents_apart(scorer, worker.device, config.precision.dtype)
        optimizer = make_optimizer(scorer, config.optim)
        course = make_course(job, scorer, worker)
        metrics = train(scorer, optimizer, course, worker)
        write_model(config, places, adapted, scorer, job.output, worker)
    return metrics


def make_course(job: TrainJob, scorer: Scorer, worker: Worker) -> Course:
    config = job.config
    num_steps, order = plan_run(config, job.tokens)
    objective: Callable[..., objectives.Loss] = partial(_causal_lm, z_loss=config.optim.z_loss)
    count, anchor = objectives.count_labels, None
    if isinstance(config, DpoConfig):
        reference = find_reference(job, scorer, RowReader(job.tokens), "", worker)
        terms = Terms(config.loss, config.beta, config.label_smoothing, config.length_normalised)
        objective = partial(_preference, reference=reference, terms=terms)
        count = objectives.count_pairs
        if config.loss is PreferenceLoss.kto:
            anchor = make_anchor(job, scorer, worker)
    return Course(config.loop, config.optim, num_steps, order, objective, count, job.checkpoints, job.run, anchor)


def make_anchor(job: TrainJob, scorer: Scorer, worker: Worker) -> Callable[[Scorer, Sequence[Rows]], float]:
    """Let the reference score the exchanged replies of every row, once; return what estimates KTO's KL of a step."""
    reader = MismatchedReader(job.tokens)
    reference = find_reference(job, scorer, reader, MISMATCHED, worker)
    return partial(estimate_kl, reader=reader, reference=reference, device=worker.device)


def find_reference(job: TrainJob, scorer: Scorer, reader: RowReader, folder: str, worker: Worker) -> Reference:
    """Return the scores that the config names, or score now with the model that has not moved yet."""
    given = next((parent for parent in job.parents if parent.ref.kind is Kind.scores), None)
    if given is None:
        return score_reference(scorer, reader, job.config.loop.micro_rows, job.checkpoints / folder, worker)
    reference = read_reference(given.location / folder / REFERENCE)
    check_reference(scorer, reader, reference, given, worker.device)
    return reference


def _causal_lm(scorer: Scorer, batch: Batch, rows: Rows, z_loss: float) -> objectives.Loss:  # noqa: ARG001
    return objectives.causal_lm(scorer, batch, z_loss)


def _preference(
    scorer: Scorer, batch: Batch, rows: Rows, reference: Reference, terms: Terms, kl: float = 0.0
) -> objectives.Loss:
    logps = attach_reference(rows, reference).to(batch.input_ids.device)
    return objectives.preference(scorer, batch, logps, terms, kl)
