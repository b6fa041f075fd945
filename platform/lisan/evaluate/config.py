"""Config of `run_evals`: tasks and the model that they score."""

from dataclasses import dataclass, field, replace
from enum import StrEnum

from lisan.cluster.config import Precision
from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig


class TaskKind(StrEnum):
    bits_per_byte = "bits_per_byte"
    multiple_choice = "multiple_choice"
    preference = "preference"


class Length(StrEnum):
    bytes = "bytes"
    "UTF-8 bytes of the answer, as in lm-eval's acc_bytes."
    characters = "characters"
    "Characters of the answer, as in lm-eval's acc_norm."
    tokens = "tokens"
    "Tokens of the answer; not comparable between models with different tokenizers."
    none = "none"
    "1: the log-probability of the whole answer, as in lm-eval's acc. Suits choices that are names from the training text."


class PromptStyle(StrEnum):
    plain = "plain"
    "A question line and an answer line, for base models."
    chat = "chat"
    "The chat template, for tuned models."


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    """Records of a corpus and the way in which a model is scored on them."""

    kind: TaskKind
    sources: tuple[str, ...]
    "Sources of the corpus."
    split: str = "validation"
    where: dict[str, str] = field(default_factory=dict)
    "Values that the meta of a record must have; alternatives are separated by |: {told_in: en|both}."
    prompt: PromptStyle | None = None
    "null takes the prompt of the job."
    length: Length = Length.bytes
    "Divisor of the log-probability of each choice before choices are compared."
    max_records: int = 1000

    def __post_init__(self) -> None:
        if not self.sources or self.max_records < 1:
            raise ConfigError(f"a task needs sources and max_records >= 1, got {self.sources} and {self.max_records}")
        if self.is_text and (self.prompt is not None or self.length is not Length.bytes):
            raise ConfigError(
                f"prompt and length have no effect on {self.kind}, which has no choices to compare; leave them out"
            )

    @property
    def is_text(self) -> bool:
        """Whether the task scores documents, which have no prompt and no choices."""
        return self.kind is TaskKind.bits_per_byte


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(StageConfig):
    """Evaluation of one model on the tasks of a suite."""

    model: str
    "Model to evaluate: model/name@version, a local folder or a hub id."
    corpus: str
    "corpus/name@version that holds the sources of the tasks."
    prompt: PromptStyle = PromptStyle.plain
    "Form of the questions and preferences, in tasks that set no prompt of their own."
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    context_length: int = 512
    "Tokens of a row. Longer prompts lose their beginning and are counted; longer documents are scored in spans, as in training."
    batch_rows: int = 8
    precision: Precision = Precision.auto
    "auto computes in bfloat16 on devices that multiply it natively and in float32 elsewhere."

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ConfigError(
                "run_evals needs tasks: choose a suite, such as suite=world, or set tasks.NAME.kind and sources"
            )
        if self.context_length < 2 or self.batch_rows < 1:
            raise ConfigError(
                f"run_evals needs context_length >= 2 and batch_rows >= 1, got {self.context_length} and {self.batch_rows}"
            )
        if self.prompt is PromptStyle.chat and all(task.is_text or task.prompt for task in self.tasks.values()):
            raise ConfigError(
                "prompt=chat has no effect: every task scores documents or sets its own prompt; leave it out"
            )

    def task(self, name: str) -> TaskConfig:
        """Return a task, with the prompt of the job when it has choices and sets none."""
        task = self.tasks[name]
        return task if task.is_text or task.prompt else replace(task, prompt=self.prompt)
