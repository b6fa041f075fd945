"""Configs of continued pretraining, fine-tuning and preference training.

A combination that cannot work, or a field without effect, is refused when the config is made.
"""

from dataclasses import dataclass, field

from lisan.cluster.config import Precision
from lisan.core.artifact import Kind, Ref
from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.references import parse_refs
from lisan.core.stage import StageConfig
from lisan.data.config import MixConfig
from lisan.model.config import Attention, ModelConfig, ShardingConfig
from lisan.train.options import (
    LoopConfig,
    Method,
    MomentType,
    OptimConfig,
    PreferenceLoss,
    Quantisation,
    RuntimeConfig,
    TuningConfig,
    ValidationConfig,
)


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
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    "Loss on held-out rows while training."
    precision: Precision = Precision.auto
    """Of the computation; master weights, gradients' reductions and optimizer state are fp32. auto takes bfloat16 where every
    worker's device multiplies it natively and float32 elsewhere, and says which."""
    float8: bool = False
    """Whether the products inside the blocks are computed in float8: on an H100 or later, with bfloat16 around them and best
    with sharding.compile=true. Not yet run on a GPU."""
    save_precision: Precision = Precision.bfloat16
    "Of the finished model's weights on disk; nothing is computed in it."
    sharding: ShardingConfig = field(default_factory=ShardingConfig, metadata=NOT_IDENTITY)
    "Layout of the model over its workers, and activation checkpointing."
    runtime: RuntimeConfig = field(default_factory=RuntimeConfig, metadata=NOT_IDENTITY)
    attention: Attention = Attention.sdpa
    "How the documents of a row are kept apart: sdpa everywhere; flex or flash for long rows on a GPU, not yet tried on one."

    def __post_init__(self) -> None:
        self.tuning.check_start(self.model.path)
        if self.loop.num_steps:
            self.optim.check_warmup(self.loop.num_steps)
        if self.float8 and self.precision is Precision.float32:
            raise ConfigError("float8=true needs precision=bfloat16 or auto, got float32; set it, or leave float8 out")
        if self.save_precision is Precision.auto:
            raise ConfigError(
                "save_precision must be bfloat16 or float32: files do not depend on the machine; got auto"
            )
        if self.float8 and self.tuning.quantise_base is not Quantisation.none:
            raise ConfigError(
                f"float8=true has no effect on blocks of tuning.quantise_base={self.tuning.quantise_base}; leave one of them out"
            )
        check_options(self)
        if self.sharding.compile and self.attention is Attention.flash:
            raise ConfigError(
                "sharding.compile=true with attention=flash would compile anew for every batch with other lengths of documents; "
                "take attention=flex, or leave compile out"
            )
        if self.validation.asynchronous and self.cluster.num_workers == 0:
            raise ConfigError(
                "validation.asynchronous=true needs workers of Ray Train to validate beside (cluster=cpu2 or gpu8), and "
                "cluster.num_workers is 0; choose such a cluster, or leave it out"
            )
        if self.validation.asynchronous and not self.loop.async_checkpoints:
            raise ConfigError(
                "validation.asynchronous=true has no effect with loop.async_checkpoints=false, where training waits for every "
                "checkpoint; set that to true"
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
        if self.validation.tokens is not None:
            raise ConfigError(
                f"validation.tokens={self.validation.tokens} is for text; train_dpo measures no held-out loss, leave it out"
            )
        if self.optim.z_loss:
            raise ConfigError(f"optim.z_loss={self.optim.z_loss} has no effect on preferences; set it to 0")
        if self.model.path is None:
            raise ConfigError("train_dpo needs model.path: preferences are learned against a reference model")


def inputs_of(config: TrainConfig) -> tuple[str | None, ...]:
    """Return the fields that may name a folder or a hub id as well as an artifact."""
    return config.model.path, config.model.tokenizer, config.model.new_rows.donor


def parents_of(config: TrainConfig) -> tuple[Ref, ...]:
    """Return the artifacts that a run is made from, its tokens first."""
    refs = [Ref.parse(config.tokens, Kind.tokens)]
    if config.validation.tokens is not None:
        refs.append(Ref.parse(config.validation.tokens, Kind.tokens))
    refs += parse_refs(*inputs_of(config))
    if isinstance(config, DpoConfig) and config.reference is not None:
        refs.append(Ref.parse(config.reference, Kind.scores))
    return tuple(refs)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(StageConfig):
    tokens: str
    "tokens/name@version of preferences"
    model: ModelConfig
    "As train_dpo will have it: a model and, when its vocabulary is to grow, the tokenizer and how new rows begin."
    mismatched: bool = False
    "Also scores every prompt with the reply of another pair, which loss=kto measures its KL divergence with."
    micro_rows: int = 8
    "Rows that one worker computes at a time."
    precision: Precision = Precision.auto
    "Of the computation; training has to come to the same one."
    attention: Attention = Attention.sdpa

    def __post_init__(self) -> None:
        if self.micro_rows < 1:
            raise ConfigError(f"micro_rows must be >= 1, got {self.micro_rows}")
        as_training(self)


def as_training(config: ScoreConfig) -> DpoConfig:
    """Return the training whose first model this is."""
    return DpoConfig(
        name=config.name,
        tokens=config.tokens,
        model=config.model,
        precision=config.precision,
        attention=config.attention,
        loop=LoopConfig(step_rows=config.micro_rows, micro_rows=config.micro_rows),
        storage=config.storage,
        cluster=config.cluster,
    )


def check_options(config: TrainConfig) -> None:
    """Refuse options that are not tested with tensor parallelism."""
    if config.sharding.tensor_parallel_size == 1:
        return
    split = f"sharding.tensor_parallel_size={config.sharding.tensor_parallel_size}"
    if config.tuning.method is not Method.full:
        raise ConfigError(
            f"tuning.method={config.tuning.method} is not possible with {split}, which splits blocks that are trained whole; set "
            "method=full, or tensor_parallel_size=1"
        )
    if config.float8:
        raise ConfigError(f"float8=true is not possible with {split}; leave one of them out")
    if config.optim.moments is not MomentType.fp32:
        raise ConfigError(
            f"optim.moments={config.optim.moments} is not possible with {split}; set moments=fp32, or tensor_parallel_size=1"
        )
