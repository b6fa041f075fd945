"""The figures of a fertility report, and the table that people see of them on a terminal.

In: counts of every tokenizer by source and language. Out: figures by tokenizer and language for the manifest,
`report.json`, the page and the terminal. Always: figures of one language come from the same text, so that they may be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lisan.reporting.tables import Better, Column, ModelRow, format_value, is_best
from lisan.tokenizer.fertility.measure import Comparison, FertilityCounts

HISTOGRAM = ("1", "2", "3", "4", "5+")
"Tokens of a word."


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredTokenizer:
    """A tokenizer and its counts."""

    label: str
    place: str
    num_pieces: int
    scripts: dict[str, int]
    "Pieces that hold a letter of each script, special tokens apart."
    rows: list[FertilityCounts]
    "A row a source."
    languages: dict[str, FertilityCounts]
    "A row a language, pooled over its sources."
    learning_curve: tuple[tuple[float, float], ...] = ()
    "New pieces and tokens per word, where the tokenizer's manifest tells it."


def columns_of(base: str, context_length: int) -> list[Column]:
    """Return the figures of a language as people read them."""
    return [
        Column(key="tokens_per_word", label="tokens per word", better=Better.low, decimals=2),
        Column(key="factor", label=f"times fewer than {base}", better=Better.high, decimals=2),
        Column(key="whole_word_ratio", label="words that are one token", better=Better.high),
        Column(key="tokens_per_word_p50", label="half of the words within", decimals=0),
        Column(key="tokens_per_word_p95", label="95 % of the words within", better=Better.low, decimals=0),
        Column(key="bytes_per_token", label="bytes per token", better=Better.high, decimals=2),
        Column(key="continuation_ratio", label="continuations", better=Better.low),
        Column(key="single_byte_ratio", label="single bytes", better=Better.low),
        Column(key="words_in_context", label=f"words in {context_length:,} tokens", better=Better.high, decimals=0),
        Column(key="changed_lines", label="lines not given back", better=Better.low, decimals=0),
    ]


TERMINAL = {
    "tokens_per_word": "tokens a word",
    "factor": "times fewer",
    "whole_word_ratio": "whole words",
    "bytes_per_token": "bytes a token",
    "single_byte_ratio": "single bytes",
    "words_in_context": "words in context",
}
"Figures that fit a terminal, by shorter names."
LOG_WIDTH = 110
"Where there is no terminal, a table is as wide as it needs up to this."


def figures_of(row: FertilityCounts, base: FertilityCounts, context_length: int) -> dict[str, float]:
    """Return the figures of a language; `base` is the base tokenizer's row of the same text."""
    return {
        "tokens_per_word": row.fertility,
        "tokens_per_word_p50": row.word_percentile(0.5),
        "tokens_per_word_p95": row.word_percentile(0.95),
        "bytes_per_token": row.bytes_per_token,
        "whole_word_ratio": row.whole_word_ratio,
        "continuation_ratio": row.continuation_ratio,
        "single_byte_ratio": row.single_byte_ratio,
        "factor": Comparison(base, row).factor,
        "words_in_context": context_length / row.fertility if row.fertility else 0.0,
        "changed_lines": row.num_changed_lines,
    }


def histogram_of(row: FertilityCounts) -> list[float]:
    """Return the share of words by `HISTOGRAM`."""
    counts = [*row.word_tokens[: len(HISTOGRAM) - 1], sum(row.word_tokens[len(HISTOGRAM) - 1 :])]
    return [count / max(1, row.num_words) for count in counts]


def rows_of(measured: Sequence[MeasuredTokenizer], language: str, base: str, context_length: int) -> list[ModelRow]:
    """Return the table of a language, a row a tokenizer."""
    [against] = [one.languages[language] for one in measured if one.label == base]
    return [
        ModelRow(name=one.label, ref=one.place, metrics=figures_of(one.languages[language], against, context_length))
        for one in measured
    ]


def metrics_of(measured: Sequence[MeasuredTokenizer], base: str, context_length: int) -> dict[str, float]:
    """Return every figure as `label/language/figure`, and the pieces of every tokenizer as `label/num_pieces`."""
    found = {f"{one.label}/num_pieces": float(one.num_pieces) for one in measured}
    for language in measured[0].languages:
        for row in rows_of(measured, language, base, context_length):
            found |= {f"{row.name}/{language}/{key}": round(value, 6) for key, value in row.metrics.items()}
    return found


def report_of(measured: Sequence[MeasuredTokenizer], base: str, context_length: int) -> dict[str, Any]:
    """Return everything for `report.json`."""
    languages = {
        language: {
            "words": row.num_words,
            "bytes": row.num_bytes,
            "lines": row.num_lines,
            "sources": [one.source for one in measured[0].rows if one.language == language],
        }
        for language, row in measured[0].languages.items()
    }
    tables = {language: rows_of(measured, language, base, context_length) for language in languages}
    tokenizers = {}
    for index, one in enumerate(measured):
        figures = {
            language: {
                **tables[language][index].metrics,
                "tokens": row.num_tokens,
                "words_by_tokens": dict(zip(HISTOGRAM, histogram_of(row), strict=True)),
            }
            for language, row in one.languages.items()
        }
        tokenizers[one.label] = {
            "place": one.place,
            "num_pieces": one.num_pieces,
            "pieces_with_letters": one.scripts,
            "learning_curve": one.learning_curve,
            "languages": figures,
            "sources": [row.to_plain() for row in one.rows],
        }
    return {"context_length": context_length, "languages": languages, "tokenizers": tokenizers}


def print_table(measured: Sequence[MeasuredTokenizer], base: str, context_length: int) -> None:
    """Print a block of rows for every language, the best of each figure in bold."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    columns = [column for column in columns_of(base, context_length) if column.key in TERMINAL]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("", no_wrap=True)
    table.add_column("tokenizer", no_wrap=True)
    for column in columns:
        table.add_column(TERMINAL[column.key], justify="right", min_width=6)
    for language in measured[0].languages:
        rows = rows_of(measured, language, base, context_length)
        for index, row in enumerate(rows):
            cells = [_cell(row, column, rows) for column in columns]
            table.add_row("" if index else language, row.name, *cells, end_section=index == len(rows) - 1)
    console = Console(highlight=False)
    console.print(table, width=None if console.is_terminal else LOG_WIDTH, crop=False)


def _cell(row: ModelRow, column: Column, rows: Sequence[ModelRow]) -> str:
    text = format_value(row, column)
    return f"[bold]{text}[/bold]" if is_best(row, column, rows) else text
