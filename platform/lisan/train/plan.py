"""The plan of a training run: its steps, rows, objective, and where it logs and saves."""

from collections.abc import Callable
from dataclasses import dataclass, field

from lisan.core.storage import Location
from lisan.data.row_order import RowOrder
from lisan.model.score import Scorer
from lisan.train.metrics.mfu import Mfu
from lisan.train.metrics.progress_line import ProgressLine
from lisan.train.metrics.run_log import RunLog
from lisan.train.objectives import Objective
from lisan.train.options import LoopConfig, OptimConfig


@dataclass(frozen=True)
class TrainPlan:
    """Everything that the loop reads; nothing in it changes but the log and the progress line."""

    config: LoopConfig
    optim: OptimConfig
    num_steps: int
    order: RowOrder
    objective: Objective
    checkpoints: Location
    log: RunLog | None = None
    "On the first rank; None logs nothing."
    mfu: Mfu | None = None
    "Base of MFU; None measures none."
    progress: ProgressLine = field(default_factory=ProgressLine)
    validate: Callable[[Scorer], dict[str, float]] | None = None
    "Returns the losses on held-out rows; every rank calls it after some of the steps."
    validate_every: int = 0
    "Steps between validations; 0 validates with every checkpoint."
