"""Renders the report of an evaluation as one HTML file without scripts or external links.

Shows accuracies, bits per byte, counts and sample items with the model's choice. Text is set in its script's direction.
"""

from collections.abc import Sequence
from typing import Any

from lisan.core.versions import code_commit
from lisan.data.dropped_records import SPELT
from lisan.evaluate.config import EvalConfig
from lisan.evaluate.metrics import mean
from lisan.evaluate.results import ItemResult, TaskReport, describe
from lisan.evaluate.tasks import Item
from lisan.reporting.render import render_template
from lisan.reporting.tables import Column, ModelRow, lay_out_table

NORMAL_95 = 1.96
"Standard errors on each side of the mean in a 95 % interval."
NUM_SAMPLES = 6
"Sample items per task, half right and half wrong where there are enough."
MAX_GROUPS = 80
MAX_PROMPT = 700
"Characters of a prompt that are shown: its end."
TEXT_COLUMNS = (
    Column(key="bits_per_byte", label="bits per byte"),
    Column(key="tokens_per_word", label="tokens per word", decimals=2),
    Column(key="bytes_per_token", label="bytes per token", decimals=2),
    Column(key="items", label="documents", decimals=0),
    Column(key="left_out", label="left out", decimals=0),
)
CHOICE_COLUMNS = (
    Column(key="accuracy", label="accuracy"),
    Column(key="chance", label="chance"),
    Column(key="items", label="items", decimals=0),
    Column(key="left_out", label="left out", decimals=0),
    Column(key="truncated", label="prompts cut", decimals=0),
    Column(key="ties", label="ties", decimals=0),
)


def render_page(config: EvalConfig, reports: Sequence[TaskReport], precision: str) -> str:
    texts = [report for report in reports if report.task.is_text]
    choices = [report for report in reports if not report.task.is_text]
    return render_template(
        "evaluate",
        "report.html.jinja",
        title=f"Evaluation of {config.model}",
        summary=_summary(config, reports),
        choices=lay_out_table([_row(report) for report in choices], CHOICE_COLUMNS),
        bars=[_bar(report) for report in choices],
        texts=lay_out_table([_row(report) for report in texts], TEXT_COLUMNS),
        notes=[note for report in reports for note in _notes(report, config.context_length)],
        groups=[(report.name, found) for report in choices if len(found := _groups(report)) > 1],
        samples=[(report, _samples(report)) for report in choices],
        facts={
            "model": config.model,
            "corpus": config.corpus,
            "context length": f"{config.context_length} tokens",
            "precision": precision,
            "report": f"report/{config.name}@{config.version}",
            "commit": code_commit(),
        },
    )


def _summary(config: EvalConfig, reports: Sequence[TaskReport]) -> str:
    count = sum(len(report.items) for report in reports)
    return (
        f"{count:,} items of {len(reports)} task{'s' if len(reports) > 1 else ''} from {config.corpus}. "
        "Intervals are 95 %, ± is one standard error; both estimate the variation between samples of such items."
    )


def _row(report: TaskReport) -> ModelRow:
    task = report.task
    description = (
        [task.kind.value.replace("_", " ")] if task.is_text else [f"{task.prompt} prompt", f"length: {task.length}"]
    )
    numbers = {**report.metrics, **report.numbers}
    return ModelRow(name=report.name, ref=", ".join([*description, f"split {task.split}"]), metrics=numbers)


def _bar(report: TaskReport) -> dict[str, Any]:
    """Return an accuracy with its interval and chance, in per cent."""
    accuracy, error = report.metrics["accuracy"], report.metrics["accuracy_stderr"]
    low, high = max(0.0, accuracy - NORMAL_95 * error), min(1.0, accuracy + NORMAL_95 * error)
    return {
        "name": report.name,
        "accuracy": 100 * accuracy,
        "low": 100 * low,
        "high": 100 * high,
        "chance": 100 * report.numbers["chance"],
        "text": f"{accuracy:.3f}",
        "interval": f"{low:.3f} to {high:.3f}",
    }


def _notes(report: TaskReport, context_length: int) -> list[str]:
    """Return a sentence for each way in which the scored items differ from the corpus."""
    numbers, notes = report.numbers, []
    seen = len(report.items) + report.counts.left_out.total()
    if report.counts.matched > seen:
        notes.append(f"{report.name}: a sample of {seen:,} of {report.counts.matched:,} records (max_records)")
    if report.counts.left_out:
        notes.append(
            f"{report.name}: {numbers['left_out']:,} records were left out: {describe(report.counts.left_out)}"
        )
    if numbers["spelt_controls"]:
        notes.append(f"{report.name}: {numbers['spelt_controls']:,} records {SPELT}")
    if numbers.get("truncated"):
        notes.append(
            f"{report.name}: {numbers['truncated']:,} prompts lost their beginning to fit {context_length} tokens"
        )
    if numbers.get("ties"):
        notes.append(f"{report.name}: {numbers['ties']:,} items have several best choices, which share the credit")
    return notes


def _groups(report: TaskReport) -> list[tuple[str, int, float]]:
    """Return name, item count and accuracy of every subject or source, lowest accuracy first."""
    credits: dict[str, list[float]] = {}
    for item, result in zip(report.items, report.results, strict=True):
        credits.setdefault(item.group, []).append(result.credit(report.task.length))
    found = [(name, len(own), mean(own)) for name, own in credits.items()]
    return sorted(found, key=lambda group: (group[2], group[0]))[:MAX_GROUPS]


def _samples(report: TaskReport) -> list[dict[str, Any]]:
    """Return sample items: wrong ones, then right ones, in the order of their ids."""
    pairs = list(zip(report.items, report.results, strict=True))
    wrong, right = (
        [pair for pair in pairs if (pair[1].credit(report.task.length) == 1) is is_right] for is_right in (False, True)
    )
    half = NUM_SAMPLES // 2
    num_wrong = max(half, NUM_SAMPLES - len(right))
    num_right = max(half, NUM_SAMPLES - len(wrong))
    return [_sample(report, item, result) for item, result in [*wrong[:num_wrong], *right[:num_right]]]


def _sample(report: TaskReport, item: Item, result: ItemResult) -> dict[str, Any]:
    length = report.task.length
    chosen, scores = result.choose(length), result.scores(length)
    choices = [
        {"text": text, "score": f"{score:.3f}", "is_gold": index == item.answer, "is_chosen": index in chosen}
        for index, (text, score) in enumerate(zip(item.texts, scores, strict=True))
    ]
    cut = len(item.prompt) > MAX_PROMPT
    return {
        "prompt": f"… {item.prompt[-MAX_PROMPT:]}" if cut else item.prompt,
        "choices": choices,
        "is_right": result.credit(length) == 1,
        "is_tie": len(chosen) > 1,
        "is_truncated": item.is_truncated,
        "group": item.group,
    }
