"""Fields of `run_evals`."""

from dataclasses import dataclass, field
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
    "UTF-8 bytes of the answer, as lm-eval's acc_bytes."
    characters = "characters"
    "Characters of the answer, as lm-eval's acc_norm."
    tokens = "tokens"
    "Tokens of the answer; no measure between models of different tokenizers."
    none = "none"
    "One: the whole answer's log-probability, as lm-eval's acc. Right where choices are names that the model has read."


class Prompt(StrEnum):
    plain = "plain"
    "Question and answer lines, for base models."
    chat = "chat"
    "The chat template, for tuned models."


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskConfig:
    kind: TaskKind
    sources: tuple[str, ...]
    "Sources of the corpus."
    split: str = "validation"
    where: dict[str, str] = field(default_factory=dict)
    "Keep records whose meta has these values; alternatives are separated by |: {told_in: en|both}."
    prompt: Prompt = Prompt.plain
    length: Length = Length.bytes
    "What the log-probabilities of choices are divided by before they are compared."
    max_records: int = 1000

    def __post_init__(self) -> None:
        if not self.sources or self.max_records < 1:
            raise ConfigError(f"a task needs sources and max_records >= 1, got {self.sources} and {self.max_records}")
        if self.is_text and (self.prompt is not Prompt.plain or self.length is not Length.bytes):
            raise ConfigError(
                f"prompt and length have no effect on {self.kind}, which has no choices to compare; leave them out"
            )

    @property
    def is_text(self) -> bool:
        """Whether it scores documents, which have no prompt and no choices."""
        return self.kind is TaskKind.bits_per_byte


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalConfig(StageConfig):
    model: str
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
