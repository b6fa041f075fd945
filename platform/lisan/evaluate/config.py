"""Fields of `run_evals`."""

from dataclasses import dataclass, field

from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig
from lisan.evaluate.tasks import TaskConfig
from lisan.model.config import Precision


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(StageConfig):
    candidate: str
    "The model to look at: model/name@version, a local folder or a hub id."
    corpus: str
    "corpus/name@version with the records that the tasks name"
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    context_length: int = 512
    "Tokens of a row. Prompts lose their beginning to fit, counted; longer documents are scored in parts, as in training."
    batch_rows: int = 8
    precision: Precision = Precision.auto
    "Of the computation; auto takes bfloat16 where the device multiplies it natively and float32 elsewhere."

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(
                "run_evals needs tasks: choose a suite, such as suite=world, or set tasks.NAME.kind and sources"
            )
        if self.context_length < 2 or self.batch_rows < 1:
            raise ConfigError(
                f"run_evals needs context_length >= 2 and batch_rows >= 1, got {self.context_length} and {self.batch_rows}"
            )
