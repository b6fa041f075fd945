"""The way a training run takes: how many steps of how many rows, from where, measured how.

In: configs and a tokens artifact. Out: a `Course`, which the loop follows and the meter reads. Pure facts, nothing moves here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lisan.core.stage import Run
from lisan.core.storage import Location
from lisan.data.row_order import RowOrder
from lisan.data.rows import RowBatch
from lisan.model.score import Batch, Scorer
from lisan.train.metrics.mfu import Gauge
from lisan.train.metrics.progress_line import Progress
from lisan.train.metrics.run_log import History
from lisan.train.objectives import Loss
from lisan.train.options import LoopConfig, OptimConfig


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
    anchor: Callable[[Scorer, Sequence[RowBatch]], float] | None = None
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
