"""Renders the comparison of a recipe's models as one HTML page without scripts or links.

Takes metrics, training curves, data mixes and replies as plain numbers and text. Missing metrics stay empty; Arabic runs from
right to left.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lisan.reporting.charts import colour, line_chart
from lisan.reporting.render import render_template
from lisan.reporting.tables import Column, ModelRow, format_value, get_value, guess_columns, is_best, lay_out_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """A training curve."""

    name: str
    steps: Sequence[int]
    values: Sequence[float]
    label: str = "loss"


@dataclass(frozen=True, kw_only=True, slots=True)
class Mix:
    """The data a model was trained on: tokens (or shares) by source."""

    name: str
    parts: Mapping[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """A question to a model and its answer."""

    language: str
    question: str
    answer: str
    model: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    title: str
    rows: Sequence[ModelRow]
    summary: str = ""
    columns: Sequence[Column] = ()
    "Empty shows every metric of the rows."
    curves: Sequence[Curve] = ()
    mixes: Sequence[Mix] = ()
    replies: Sequence[Reply] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    "Lines of small print: command, machine, commit."


def render_page(page: Page) -> str:
    columns = list(page.columns) or guess_columns(page.rows)
    return render_template(
        "recipes",
        "comparison.html.jinja",
        page=page,
        bars=[_bars(column, page.rows) for column in columns],
        table=lay_out_table(page.rows, page.columns),
        curves=[(curve, line_chart(curve.steps, curve.values, curve.label)) for curve in page.curves],
        mixes=_mixes(page.mixes),
        replies=_by_language(page.replies),
    )


def _bars(column: Column, rows: Sequence[ModelRow]) -> dict[str, object]:
    """Lay out one metric as bars: widths in per cent of the largest value, or of 1 for accuracies."""
    values = [get_value(row, column) for row in rows]
    sizes = [max(0.0, value) if value is not None and math.isfinite(value) else 0.0 for value in values]
    reference = column.reference
    top = max([*sizes, reference or 0.0]) or 1.0
    if "accuracy" in column.key and top <= 1:
        top = 1.0
    bars = [
        (row.name, 100 * size / top, format_value(row, column), is_best(row, column, rows))
        for row, size in zip(rows, sizes, strict=True)
    ]
    return {"column": column, "bars": bars, "reference": None if reference is None else 100 * reference / top}


def _mixes(mixes: Sequence[Mix]) -> list[tuple[str, list[tuple[str, float, float, str]]]]:
    """Return (source, amount, per cent, colour) for every mix, largest first; a source has one colour in all mixes."""
    sources = dict.fromkeys(name for mix in mixes for name in mix.parts)
    colours = {name: colour(index) for index, name in enumerate(sources)}
    found = []
    for mix in mixes:
        total = sum(mix.parts.values()) or 1.0
        parts = sorted(mix.parts.items(), key=lambda part: -part[1])
        found.append((mix.name, [(name, amount, 100 * amount / total, colours[name]) for name, amount in parts]))
    return found


def _by_language(replies: Sequence[Reply]) -> dict[str, list[Reply]]:
    found: dict[str, list[Reply]] = {}
    for reply in replies:
        found.setdefault(reply.language, []).append(reply)
    return found
