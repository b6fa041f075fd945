"""The page of a fertility report: tokenizers side by side, language by language.

In: measured figures, and sentences cut into pieces. Out: one HTML page without scripts or links to anywhere. Always: a tokenizer
keeps its colour in every plot, Arabic runs from right to left, and bytes that are no character stand there as bytes.
"""

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lisan.reporting.charts import bar_chart, colour, curve_chart
from lisan.reporting.render import render_template
from lisan.reporting.tables import Column, ModelRow, lay_out_table
from lisan.tokenizer.fertility.figures import (
    HISTOGRAM,
    MeasuredTokenizer,
    columns_of,
    figures_of,
    histogram_of,
    rows_of,
)
from lisan.tokenizer.fertility.measure import FertilityCounts
from lisan.tokenizer.pieces import PieceText

MAX_SCRIPTS = 6
PLOTS = (
    ("tokens_per_word", "tokens per word", "lower is better"),
    ("whole_word_ratio", "share of words that are one token", "higher is better"),
    ("bytes_per_token", "bytes per token", "higher is better"),
    ("single_byte_ratio", "share of tokens that are a single byte of a character", "lower is better"),
    ("factor", "times fewer tokens than {base}", "higher is better"),
    ("words_in_context", "words that fit {context:,} tokens", "higher is better"),
)
"Figure, meaning, better direction."


@dataclass(frozen=True, slots=True)
class CutSentence:
    """A sentence, and its pieces by tokenizer."""

    text: str
    cuts: Mapping[str, list[list[PieceText]]]

    @property
    def direction(self) -> str:
        """`rtl` when the first letter is one of a script that runs from right to left."""
        kinds = (unicodedata.bidirectional(character) for character in self.text)
        return "rtl" if next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") != "L" else "ltr"


@dataclass(frozen=True, kw_only=True, slots=True)
class FertilityPage:
    title: str
    base: str
    context_length: int
    measured: Sequence[MeasuredTokenizer]
    examples: Mapping[str, Sequence[CutSentence]] = field(default_factory=dict)
    "By language."
    facts: Mapping[str, str] = field(default_factory=dict)
    "Lines of small print."


def render_page(page: FertilityPage) -> str:
    languages = list(page.measured[0].languages)
    return render_template(
        "tokenizer/fertility",
        "fertility.html.jinja",
        page=page,
        key=[(one.label, colour(index)) for index, one in enumerate(page.measured)],
        vocabularies=_vocabularies(page.measured),
        plots=_plots(page, languages),
        histograms=[(language, _histogram(page.measured, language)) for language in languages],
        tables={language: _table(page, language) for language in languages},
        sizes={language: _describe(row) for language, row in page.measured[0].languages.items()},
        curves=_curves(page.measured),
    )


def _vocabularies(measured: Sequence[MeasuredTokenizer]) -> dict[str, object]:
    """Lay out the sizes of the vocabularies, with the scripts that any of them has most pieces of."""
    most = {script: max(one.scripts.get(script, 0) for one in measured) for one in measured for script in one.scripts}
    scripts = sorted(most, key=lambda script: (-most[script], script))[:MAX_SCRIPTS]
    columns = [Column(key="num_pieces", label="pieces", decimals=0)]
    columns += [
        Column(key=script, label=f"with {script.upper() if len(script) < 4 else script.title()} letters", decimals=0)
        for script in scripts
    ]
    rows = [
        ModelRow(
            name=one.label,
            ref=one.place,
            metrics={"num_pieces": one.num_pieces, **{script: one.scripts.get(script, 0) for script in scripts}},
        )
        for one in measured
    ]
    return lay_out_table(rows, columns)


def _plots(page: FertilityPage, languages: Sequence[str]) -> list[tuple[str, str, str]]:
    [base] = [one for one in page.measured if one.label == page.base]
    figures = {
        one.label: [figures_of(one.languages[name], base.languages[name], page.context_length) for name in languages]
        for one in page.measured
    }
    plots = []
    for key, label, better in PLOTS:
        title = label.format(base=page.base, context=page.context_length)
        series = {name: [figure[key] for figure in found] for name, found in figures.items()}
        plots.append((title, better, bar_chart(languages, series, title)))
    return plots


def _histogram(measured: Sequence[MeasuredTokenizer], language: str) -> str:
    series: dict[str, list[float]] = {one.label: histogram_of(one.languages[language]) for one in measured}
    return bar_chart(HISTOGRAM, series, f"share of {language} words by their number of tokens")


def _table(page: FertilityPage, language: str) -> dict[str, object]:
    rows = [
        ModelRow(name=row.name, ref="", metrics=row.metrics)
        for row in rows_of(page.measured, language, page.base, page.context_length)
    ]
    return lay_out_table(rows, columns_of(page.base, page.context_length))


def _describe(row: FertilityCounts) -> str:
    return f"{row.num_words:,} words, {row.num_bytes:,} bytes"


def _curves(measured: Sequence[MeasuredTokenizer]) -> str:
    """Draw the learning curves of those that have one; the others keep their colours."""
    series = {one.label: one.learning_curve for one in measured}
    return curve_chart(series, "tokens per word by new pieces") if any(series.values()) else ""
