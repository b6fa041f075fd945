"""Formats tables of models and their metrics for a terminal, Markdown and HTML."""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum


class Better(StrEnum):
    high = "high"
    low = "low"
    neither = "neither"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """A metric and its presentation."""

    key: str
    "Metric of the rows; its standard error is the metric of that name with `_stderr`."
    label: str
    better: Better = Better.neither
    decimals: int = 3
    reference: float | None = None
    "A value for comparison, such as chance."
    reference_label: str = "chance"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelRow:
    """A model and its metrics."""

    name: str
    ref: str
    metrics: Mapping[str, float]
    seconds: float | None = None
    "Build time."


SECONDS = Column(key="seconds", label="seconds", decimals=0)


def guess_columns(rows: Iterable[ModelRow]) -> list[Column]:
    """Return a column for every metric in order of appearance; its name decides which direction is better."""
    keys = dict.fromkeys(key for row in rows for key in row.metrics if not key.endswith("_stderr"))
    return [_guess_column(key) for key in keys]


def _guess_column(key: str) -> Column:
    label = re.sub(r"[/_]+", " ", key)
    if re.search(r"accuracy|win_rate|\bf1\b|bytes_per_token|margin", key):
        return Column(key=key, label=label, better=Better.high)
    if re.search(r"bits_per_byte|bpb|loss|nll|perplexity|fertility|tokens_per_word", key):
        return Column(key=key, label=label, better=Better.low, decimals=2 if "token" in key or "fert" in key else 3)
    return Column(key=key, label=label)


def format_table(rows: Sequence[ModelRow], columns: Sequence[Column] = ()) -> str:
    """Return the table for a terminal; `*` marks the best value of a column."""
    shown = _shown(rows, columns)
    heads = [textwrap.wrap(column.label, 12, break_long_words=False) for column in shown]
    height = max((len(head) for head in heads), default=0)
    lines = [["", *cells] for cells in zip(*[[""] * (height - len(head)) + head for head in heads], strict=True)]
    marked = [[row.name, *(_cell(row, column, rows, "*{}") for column in shown)] for row in rows]
    widths = [max(len(line[index]) for line in lines + marked) for index in range(len(shown) + 1)]
    return "\n".join(_align(line, widths) for line in [*lines, ["-" * width for width in widths], *marked])


def _align(line: Sequence[str], widths: Sequence[int]) -> str:
    numbers = [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
    return "  ".join([line[0].ljust(widths[0]), *numbers]).rstrip()


def markdown_table(rows: Sequence[ModelRow], columns: Sequence[Column] = ()) -> str:
    """Return the table for a README; the best value of a column is bold."""
    shown = _shown(rows, columns)
    lines = [["model", *(column.label for column in shown)], ["---", *("---:" for _ in shown)]]
    lines += [[row.name, *(_cell(row, column, rows, "**{}**") for column in shown)] for row in rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(rows: Sequence[ModelRow], columns: Sequence[Column]) -> list[Column]:
    shown = list(columns) or guess_columns(rows)
    return shown + [SECONDS] * any(row.seconds is not None for row in rows)


def get_value(row: ModelRow, column: Column) -> float | None:
    """Return the metric of a column, or the seconds; None when it is missing."""
    return row.seconds if column is SECONDS else row.metrics.get(column.key)


def format_value(row: ModelRow, column: Column) -> str:
    value = get_value(row, column)
    return "" if value is None else f"{value:,.{column.decimals}f}"


def is_best(row: ModelRow, column: Column, rows: Sequence[ModelRow]) -> bool:
    """Tell whether a row has the best value of the column at the shown decimals; False when all values are equal."""
    if column.better is Better.neither:
        return False
    known = [value for other in rows if (value := get_value(other, column)) is not None and math.isfinite(value)]
    shown = {round(value, column.decimals) for value in known}
    value = get_value(row, column)
    if value is None or not math.isfinite(value) or len(shown) < 2:
        return False
    return round(value, column.decimals) == (max(shown) if column.better is Better.high else min(shown))


def _cell(row: ModelRow, column: Column, rows: Sequence[ModelRow], mark: str) -> str:
    text = format_value(row, column)
    return mark.format(text) if is_best(row, column, rows) else text


def lay_out_table(rows: Sequence[ModelRow], columns: Sequence[Column] = ()) -> dict[str, object]:
    """Return the values of the template's table: columns, and rows of (text, error, is best)."""
    shown = _shown(rows, columns)
    body = [
        (row, [(format_value(row, column), _error(row, column), is_best(row, column, rows)) for column in shown])
        for row in rows
    ]
    return {"columns": shown, "body": body}


def _error(row: ModelRow, column: Column) -> str:
    error = row.metrics.get(f"{column.key}_stderr")
    return "" if error is None else f"± {error:.{column.decimals}f}"
