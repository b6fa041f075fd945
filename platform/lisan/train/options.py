"""Fields of a training run: the loop, the optimizer, what is trained, validation.

Imports no torch: a job reads its config before it loads a library.
"""

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY
from lisan.model.config import LoraConfig
from lisan.train.spike_guard import GuardConfig

MAX_VALIDATION_S = 1500
"Workers wait half an hour for a checkpoint; the rest of that time is for writing it."


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopConfig:
    num_steps: int = 0
    "Optimizer updates; 0 takes as many as `num_epochs` needs."
    num_epochs: float = 1.0
    "Passes over the rows of the mixed sources; num_steps goes before it."
    step_rows: int = 32
    "Rows of one update over all workers: the global batch is step_rows x context_length tokens."
    micro_rows: int = 8
    "Rows that one worker computes at a time."
    checkpoint_every: int = field(default=200, metadata=NOT_IDENTITY)
    "Steps between checkpoints."
    checkpoint_every_min: float = field(default=10.0, metadata=NOT_IDENTITY)
    "Minutes after which there is a checkpoint whatever the step, by the first worker's clock; 0 for never."
    async_checkpoints: bool = field(default=True, metadata=NOT_IDENTITY)
    "Whether checkpoints are written while training goes on; costs main memory for one copy of a worker's share of the state."
    keep_checkpoints: int = field(default=2, metadata=NOT_IDENTITY)
    "Latest checkpoints that stay."
    keep_best: int = field(default=0, metadata=NOT_IDENTITY)
    """Checkpoints of lowest loss that stay as well: of the validation where there is one, else of the last guard.window steps.
    With validation.every only those that fell on a step of it are compared."""
    log_every: int = field(default=10, metadata=NOT_IDENTITY)
    "Steps between lines of the log."
    seed: int = 0
    guard: GuardConfig = field(default_factory=GuardConfig)

    def __post_init__(self) -> None:
        if self.num_steps < 0 or not self.num_epochs > 0:
            raise ConfigError(
                f"loop needs num_steps >= 0 and num_epochs > 0, got {self.num_steps} and {self.num_epochs}"
            )
        if min(self.step_rows, self.micro_rows, self.checkpoint_every, self.log_every, self.keep_checkpoints) < 1:
            raise ConfigError(
                "loop.step_rows, micro_rows, checkpoint_every, keep_checkpoints and log_every must be >= 1"
            )

        if not 0 <= self.checkpoint_every_min < math.inf:
            raise ConfigError(f"loop.checkpoint_every_min must be >= 0, 0 for never, got {self.checkpoint_every_min}")
        if self.keep_best < 0:
            raise ConfigError(f"loop.keep_best must be >= 0, got {self.keep_best}")

    def steps(self, num_rows: int) -> int:
        return self.num_steps or max(1, math.ceil(self.num_epochs * num_rows / self.step_rows))


class Schedule(StrEnum):
    constant = "constant"
    "Warm up, then stay: what ALLaM used for continued pretraining."
    cosine = "cosine"
    wsd = "wsd"
    "Warm up, stay, then fall linearly over the last `decay_ratio` of the steps."


class MomentType(StrEnum):
    """What AdamW keeps its two moments in."""

    fp32 = "fp32"
    int8 = "int8"
    """A byte for each and a scale for every 256 (Dettmers et al. 2022): 2 bytes a weight instead of 8; torchao,
    `pip install -e '.[int8]'`. What is smaller than 4,096 numbers on a worker, or no multiple of 256, stays in fp32. On a GPU the
    first step compiles one kernel for each shape of matrix; there it has not run yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    peak_lr: float = 3e-4
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 20
    final_lr_ratio: float = 0.1
    "Learning rate at the end, as a share of the peak (cosine and wsd)."
    decay_ratio: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    moments: MomentType = MomentType.fp32
    "How AdamW keeps its state."
    z_loss: float = 0.0
    "Weight of the squared logarithm of the softmax's denominator, against drifting logits; 1e-4 in PaLM. Not for preferences."

    def __post_init__(self) -> None:
        if not self.peak_lr > 0:
            raise ConfigError(f"optim.peak_lr must be > 0, got {self.peak_lr}")
        if self.warmup_steps < 0 or not 0 <= self.final_lr_ratio <= 1 or not 0 < self.decay_ratio <= 1:
            raise ConfigError(
                "optim needs warmup_steps >= 0, final_lr_ratio in 0..1 and decay_ratio in 0..1, got "
                f"{self.warmup_steps}, {self.final_lr_ratio}, {self.decay_ratio}"
            )
        if not 0 <= self.beta1 < 1 or not 0 <= self.beta2 < 1:
            raise ConfigError(f"optim.beta1 and beta2 must be in 0..1, below 1, got {self.beta1} and {self.beta2}")
        if not self.max_grad_norm > 0:
            raise ConfigError(f"optim.max_grad_norm must be > 0, got {self.max_grad_norm}")
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(f"optim.z_loss must be >= 0, got {self.z_loss}; 1e-4 is usual, 0 leaves it out")

    def check_warmup(self, num_steps: int) -> None:
        """Refuse a run that ends before it has reached its learning rate."""
        if self.warmup_steps > num_steps:
            raise ConfigError(
                f"optim.warmup_steps={self.warmup_steps} is longer than the run of {num_steps} steps, which would never reach "
                f"optim.peak_lr; set optim.warmup_steps={num_steps // 10}, or train longer (loop.num_steps, loop.num_epochs)"
            )


class Method(StrEnum):
    full = "full"
    lora = "lora"
    embeddings = "embeddings"
    "Only the rows of the vocabulary: the first stage after an expansion."


class Rows(StrEnum):
    none = "none"
    new = "new"
    "Those that the expansion added; where this run expands nothing, those of the expansion that made the model."
    all = "all"


class Quantisation(StrEnum):
    none = "none"
    nf4 = "nf4"
    "QLoRA: the linear layers of the blocks in 4 bits, whole on every worker; bitsandbytes, `pip install -e '.[qlora]'`."


@dataclass(frozen=True, kw_only=True, slots=True)
class TuningConfig:
    method: Method = Method.full
    rows: Rows | None = None
    """Rows of the vocabulary that are trained, beside what `method` says of the blocks: null is all with full and embeddings,
    none with lora. Rows that are not trained stay as they are to the last bit."""
    lora: LoraConfig = field(default_factory=LoraConfig)
    "Used by method=lora; merged into the model at the end."
    quantise_base: Quantisation = Quantisation.none
    "How the frozen blocks under adapters are kept. Merged weights are those that the adapters were trained over."

    def __post_init__(self) -> None:
        if self.method is Method.embeddings and self.rows is Rows.none:
            raise ConfigError("tuning.rows=none with method=embeddings trains nothing; set rows=new or all")
        if self.method is not Method.lora and self.lora != LoraConfig():
            raise ConfigError(
                f"tuning.lora has no effect with tuning.method={self.method}; drop it, or set method=lora"
            )
        if self.method is not Method.lora and self.quantise_base is not Quantisation.none:
            raise ConfigError(
                f"tuning.quantise_base={self.quantise_base} freezes the blocks, which takes method=lora, not {self.method}; set "
                "method=lora, or quantise_base=none"
            )

    @property
    def trained_rows(self) -> Rows:
        return self.rows or (Rows.none if self.method is Method.lora else Rows.all)

    def check_start(self, path: str | None) -> None:
        """Refuse to adapt random weights."""
        adapts = self.method is not Method.full or self.trained_rows is not Rows.all
        if adapts and path is None:
            what = f"tuning.method={self.method}" + (f" with rows={self.rows}" if self.rows else "")
            raise ConfigError(f"{what} adapts a model; set model.path, or train from random weights with tuning=full")


class PreferenceLoss(StrEnum):
    sigmoid = "sigmoid"
    "DPO: raise the chosen above the rejected."
    ipo = "ipo"
    "Raise it by 1 / (2 beta) and no further, so that preferences which are always met do not run away."
    kto = "kto"
    "Chosen is desirable, rejected undesirable, each compared with the policy's gain on unrelated replies."


@dataclass(frozen=True, kw_only=True, slots=True)
class ValidationConfig:
    tokens: str | None = None
    "tokens/name@version of held-out rows, encoded with split=validation; null validates nothing."
    num_rows: int = 256
    "Rows, spread evenly over the artifact; all of them when it has fewer."
    every: int = 0
    "Steps between validations, the last step always; 0 validates with every checkpoint."
    asynchronous: bool = False
    """Whether a process beside the workers validates every checkpoint while they train on. It holds the whole model, on a GPU of
    its own where the workers have GPUs (not yet run on one); the next checkpoint waits where it is slower than they are."""

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.every < 0:
            raise ConfigError(f"validation needs num_rows >= 1 and every >= 0, got {self.num_rows} and {self.every}")
        if self.tokens is None and any(getattr(self, field.name) != field.default for field in fields(self)):
            raise ConfigError(
                "validation.num_rows, every and asynchronous have no effect without validation.tokens; set it"
            )
        if self.asynchronous and self.every:
            raise ConfigError(
                f"validation.every={self.every} has no effect with asynchronous=true, which validates every checkpoint; set it to "
                "0 and loop.checkpoint_every to what you want"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """Timeouts of a training run and the denominator of its MFU."""

    collective_timeout_s: int = 600
    "Timeout in s of a collective during set-up; then the run restarts."
    step_timeout_s: int = 300
    """Timeout in s of a training step, of its collectives and of the rest; it grows to five times the slowest step.
    Has an effect where workers are restarted: Ray Train, torchrun."""
    validation_timeout_s: int = 1200
    "Timeout in s of asynchronous validation; on timeout the checkpoint has no loss."
    peak_tflops: float | None = None
    """Peak TFLOP/s of a training worker's device, the denominator of MFU; null takes the data sheet of a known GPU, or else
    measures for less than a second; 0 leaves MFU out."""

    def __post_init__(self) -> None:
        if self.step_timeout_s < 1 or self.collective_timeout_s < 1:
            raise ConfigError(
                "runtime needs step_timeout_s >= 1 and collective_timeout_s >= 1, got "
                f"{self.step_timeout_s} and {self.collective_timeout_s}"
            )
        if not 1 <= self.validation_timeout_s <= MAX_VALIDATION_S:
            raise ConfigError(
                f"runtime.validation_timeout_s must be in 1..{MAX_VALIDATION_S}, because the other workers wait for half an hour, "
                f"got {self.validation_timeout_s}; lower validation.num_rows where it takes longer"
            )
        if self.peak_tflops is not None and not 0 <= self.peak_tflops < math.inf:
            raise ConfigError(
                f"runtime.peak_tflops must be > 0, 0 for no MFU or null to find out, got {self.peak_tflops}"
            )
