"""Results of items, and the metrics of a task computed from them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lisan.core.errors import DataError
from lisan.data.dropped_records import SPELT
from lisan.evaluate.config import Length, TaskConfig, TaskKind
from lisan.evaluate.metrics import bits_per_byte, mean, standard_error
from lisan.evaluate.tasks import Item, TaskCounts

TIE = 1e-6
"Relative difference below which two scores tie: fp32 sums in another order differ by as much."


@dataclass(frozen=True, slots=True)
class ItemResult:
    """Log-probabilities of an item's candidates, with the sizes of their answers."""

    id: str
    logps: tuple[float, ...]
    "Natural log-probability of each answer given its prompt."
    num_bytes: tuple[int, ...]
    num_characters: tuple[int, ...]
    num_tokens: tuple[int, ...]
    answer: int
    num_words: int = 0
    "Words of a document, split at white space."
    is_truncated: bool = False

    def scores(self, length: Length) -> list[float]:
        """Return the log-probability of every candidate per unit of length."""
        sizes = {
            Length.none: (1,) * len(self.logps),
            Length.bytes: self.num_bytes,
            Length.characters: self.num_characters,
            Length.tokens: self.num_tokens,
        }[length]
        return [logp / size for logp, size in zip(self.logps, sizes, strict=True)]

    def choose(self, length: Length) -> tuple[int, ...]:
        """Return the index of the candidate with the highest score; several when they tie."""
        scores = self.scores(length)
        return tuple(index for index, score in enumerate(scores) if math.isclose(score, max(scores), rel_tol=TIE))

    def credit(self, length: Length) -> float:
        """Return 1 for the right choice, 1/k for one of k that tie, 0 for a wrong one."""
        chosen = self.choose(length)
        return (self.answer in chosen) / len(chosen)


def make_result(item: Item, logps: Sequence[float]) -> ItemResult:
    return ItemResult(
        id=item.id,
        logps=tuple(logps),
        num_bytes=tuple(len(text.encode()) for text in item.texts),
        num_characters=tuple(len(text) for text in item.texts),
        num_tokens=tuple(int((example.labels >= 0).sum()) for example in item.candidates),
        answer=item.answer,
        num_words=len(item.texts[0].split()) if len(item.texts) == 1 else 0,
        is_truncated=item.is_truncated,
    )


def check_finite(task: str, results: Sequence[ItemResult], model: str) -> None:
    """Raise DataError for log-probabilities that are not finite: no comparison with NaN holds, so the first choice would win."""
    broken = [result for result in results if not all(map(math.isfinite, result.logps))]
    if broken:
        raise DataError(
            f"tasks.{task}: {model} gives item {broken[0].id} the log-probability {broken[0].logps[0]} "
            f"({len(broken)} of {len(results)} items are not finite); its weights are damaged, or overflow in this precision: "
            "try precision=float32"
        )


def aggregate(config: TaskConfig, results: Sequence[ItemResult]) -> dict[str, float]:
    """Return the metrics of a task."""
    if config.kind is TaskKind.bits_per_byte:
        num_bytes = sum(result.num_bytes[0] for result in results)
        num_tokens = sum(result.num_tokens[0] for result in results)
        return {
            "bits_per_byte": bits_per_byte(-sum(result.logps[0] for result in results), num_bytes),
            "tokens_per_word": num_tokens / max(1, sum(result.num_words for result in results)),
            "bytes_per_token": num_bytes / max(1, num_tokens),
        }
    right = [result.credit(config.length) for result in results]
    return {"accuracy": mean(right), "accuracy_stderr": standard_error(right)}


@dataclass(frozen=True, slots=True)
class TaskReport:
    """The items and results of a task."""

    name: str
    task: TaskConfig
    counts: TaskCounts
    items: Sequence[Item]
    results: Sequence[ItemResult]

    @property
    def metrics(self) -> dict[str, float]:
        return aggregate(self.task, self.results)

    @property
    def numbers(self) -> dict[str, float]:
        """Return the counts behind the metrics (items, matched and left-out records, cut prompts, ties) and chance accuracy."""
        found: dict[str, float] = {
            "items": len(self.items),
            "matched": self.counts.matched,
            "left_out": self.counts.left_out.total(),
            "spelt_controls": self.counts.spelt_controls,
        }
        if self.task.is_text:
            return found
        ties = sum(len(result.choose(self.task.length)) > 1 for result in self.results)
        chance = mean([1 / len(result.logps) for result in self.results])
        return {**found, "truncated": self.counts.truncated, "ties": ties, "chance": chance}


def print_task(report: TaskReport, context_length: int, seconds: float) -> None:
    """Print the metrics of a task, and a line for each kind of record that was left out or changed."""
    numbers = report.numbers
    shown = "  ".join(f"{report.name}/{metric} {value:.4f}" for metric, value in report.metrics.items())
    chance = "" if report.task.is_text else f", chance {numbers['chance']:.2f}"
    print(f"  {shown}  ({len(report.items):,} items{chance}, {seconds:.1f} s)", flush=True)
    if report.counts.left_out:
        print(f"    {numbers['left_out']:,} records were left out: {describe(report.counts.left_out)}", flush=True)
    if numbers["spelt_controls"]:
        print(f"    {numbers['spelt_controls']:,} records {SPELT}", flush=True)
    if numbers.get("truncated"):
        print(
            f"    {numbers['truncated']:,} prompts lost their beginning to fit context_length {context_length}; raise it to "
            "score them whole",
            flush=True,
        )
    if numbers.get("ties"):
        print(f"    {numbers['ties']:,} items have several best choices, which share the credit", flush=True)


def describe(reasons: Mapping[str, int]) -> str:
    """Return counts by reason as text, the most frequent first."""
    return ", ".join(f"{count:,} with {reason}" for reason, count in sorted(reasons.items(), key=lambda one: -one[1]))
