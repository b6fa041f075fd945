"""The way a training run takes: how many steps of how many rows, from where, measured how.

In: configs and a tokens artifact. Out: a `Course`, which the loop follows and the meter reads. Pure facts, nothing moves here.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lisan.core.errors import ConfigError
from lisan.core.stage import Run
from lisan.core.storage import Location
from lisan.model.score import Batch, Scorer
from lisan.tokens.order import RowOrder
from lisan.tokens.rows import Rows
from lisan.train.gauge import Gauge
from lisan.train.guard import GuardConfig
from lisan.train.history import History
from lisan.train.objectives import Loss
from lisan.train.optim import OptimConfig
from lisan.train.progress import Progress


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
    checkpoint_every: int = 200
    "Steps between checkpoints."
    async_checkpoints: bool = True
    "Whether checkpoints are written while training goes on; costs main memory for one copy of a worker's share of the state."
    keep_checkpoints: int = 2
    "Latest checkpoints that stay."
    keep_best: int = 0
    """Checkpoints of lowest loss that stay as well: of the validation where there is one, else of the last guard.window steps.
    With validation.every only those that fell on a step of it are compared."""
    log_every: int = 10
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

        if self.keep_best < 0:
            raise ConfigError(f"loop.keep_best must be >= 0, got {self.keep_best}")

    def steps(self, num_rows: int) -> int:
        return self.num_steps or max(1, math.ceil(self.num_epochs * num_rows / self.step_rows))


@dataclass(frozen=True)
class Course:
    """Everything the loop needs to know about its way."""

    config: LoopConfig
    optim: OptimConfig
    num_steps: int
    order: RowOrder
    objective: Callable[..., Loss]
    "Called with the scorer, a batch and its rows; with `kl` too where there is an anchor."
    count_targets: Callable[[Batch], int]
    checkpoints: Location
    run: Run
    anchor: Callable[[Scorer, Sequence[Rows]], float] | None = None
    "KTO's KL estimate of a step, from its micro batches."
    gauge: Gauge | None = None
    "What MFU is measured with; None measures none."
    history: History | None = None
    "What the run's page is drawn from, on the first rank; it is the `run` then."
    progress: Progress = field(default_factory=Progress)
    validate: Callable[[Scorer], dict[str, float]] | None = None
    "Losses on held-out rows, on every rank; called after some of the steps."
    validate_every: int = 0
    "Steps between validations; 0 validates with every checkpoint."
