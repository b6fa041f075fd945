import math
import re
from html.parser import HTMLParser

import pytest

from lisan.recipes.comparison_page import Curve, Mix, Page, Reply, render_page
from lisan.reporting.tables import Better, Column, ModelRow, format_table, guess_columns, is_best, markdown_table

BITS = Column(key="bits_per_byte", label="bits per byte", better=Better.low)
ACCURACY = Column(key="accuracy", label="accuracy", better=Better.high, reference=0.25)
BASE = {"bits_per_byte": 2.9, "accuracy": 0.25}
CPT = {"bits_per_byte": 0.83, "accuracy": 0.74, "accuracy_stderr": 0.02}
ROWS = (
    ModelRow(name="base", ref="model/base@v1", metrics=BASE, seconds=80.4),
    ModelRow(name="cpt", ref="model/cpt@v1", metrics=CPT),
)
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Outline(HTMLParser):
    """Collects the elements of a page and sees that every one is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.text = [], [], []
        self.feed(html)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def make_page(**fields):
    return Page(**({"title": "A chain", "rows": ROWS, "columns": (BITS, ACCURACY)} | fields))


def test_the_best_value_of_a_column_follows_its_direction():
    assert [is_best(row, BITS, ROWS) for row in ROWS] == [False, True]
    upside_down = Column(key="bits_per_byte", label="x", better=Better.high)
    assert [is_best(row, upside_down, ROWS) for row in ROWS] == [True, False]


def test_values_that_look_equal_are_equally_good():
    rows = [ModelRow(name=str(value), ref="", metrics={"accuracy": value}) for value in (0.79004, 0.78996, 0.5)]
    assert [is_best(row, ACCURACY, rows) for row in rows] == [True, True, False]


@pytest.mark.parametrize("values", [[0.5], [0.5, 0.5], [math.nan, 0.5]])
def test_without_a_contest_nothing_is_best(values):
    rows = [ModelRow(name="x", ref="", metrics={"accuracy": value}) for value in values]
    assert not any(is_best(row, ACCURACY, rows) for row in rows)


def test_columns_are_guessed_from_the_names_of_metrics():
    row = ModelRow(
        name="x",
        ref="",
        metrics={
            "arabic/bits_per_byte": 1,
            "questions_ar/accuracy": 1,
            "questions_ar/accuracy_stderr": 1,
            "num_items": 3,
        },
    )
    assert [(column.label, column.better) for column in guess_columns([row])] == [
        ("arabic bits per byte", Better.low),
        ("questions ar accuracy", Better.high),
        ("num items", Better.neither),
    ]


def test_the_terminal_table_lines_up_and_marks_the_best():
    assert format_table(ROWS, (BITS, ACCURACY)).splitlines() == [
        "      bits per",
        "          byte  accuracy  seconds",
        "----  --------  --------  -------",
        "base     2.900     0.250       80",
        "cpt     *0.830    *0.740",
    ]


def test_the_markdown_table_has_a_row_per_model_and_empty_cells_for_missing_values():
    assert markdown_table(ROWS, (BITS,)).splitlines() == [
        "| model | bits per byte | seconds |",
        "| --- | ---: | ---: |",
        "| base | 2.900 | 80 |",
        "| cpt | **0.830** |  |",
    ]


def test_a_page_of_everything_is_well_formed_and_needs_nothing_from_elsewhere():
    html = render_page(
        make_page(
            curves=[Curve(name="cpt", steps=[1, 2, 3], values=[3.0, 2.0, 1.0])],
            mixes=[Mix(name="cpt", parts={"en": 3, "ar": 7})],
            replies=[Reply(language="ar", question="ما هي عاصمة المغرب؟", answer="الرباط", model="dpo")],
            facts={"commit": "abc"},
        )
    )
    outline = Outline(html)
    assert not re.search(r"https?://|<script|@import|url\(", html)
    assert {"table", "svg"} <= {tag for tag, _ in outline.elements}
    assert not any("src" in attributes or "href" in attributes for _, attributes in outline.elements)


def test_a_page_of_rows_alone_is_well_formed():
    outline = Outline(render_page(Page(title="A chain", rows=ROWS)))
    assert "Training" not in "".join(outline.text)


def test_replies_have_a_language_and_the_direction_of_their_text():
    reply = Reply(language="ary", question="شنو هي العاصمة ديال المغرب؟", answer="الرباط")
    outline = Outline(render_page(make_page(replies=[reply])))
    talk = [attributes for _, attributes in outline.elements if attributes.get("class") in ("ask", "say")]
    assert [(attributes["lang"], attributes["dir"]) for attributes in talk] == [("ary", "auto")] * 2


def test_text_of_a_model_cannot_become_markup():
    reply = Reply(language="en", question="<b>?</b>", answer="<script>alert(1)</script>")
    html = render_page(make_page(replies=[reply]))
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_accuracies_are_drawn_against_one_and_their_chance_marked():
    html = render_page(make_page())
    assert "width:74.0%" in html
    assert "inset-inline-start:25.0%" in html
    assert "chance 0.25" in html


def test_standard_errors_stand_below_their_metric_and_are_no_column():
    html = render_page(make_page(columns=()))
    assert "± 0.020" in html
    assert "stderr" not in html


def test_metrics_that_are_missing_or_nan_do_not_break_the_page():
    rows = [ModelRow(name="x", ref="", metrics={"accuracy": math.nan}), ModelRow(name="y", ref="", metrics={})]
    Outline(render_page(make_page(rows=rows)))


def test_a_source_keeps_its_colour_in_every_mix():
    html = render_page(make_page(mixes=[Mix(name="a", parts={"en": 1.0, "ar": 3.0}), Mix(name="b", parts={"ar": 1.0})]))
    assert set(re.findall(r'--colour:var\(--s(\d)\);[^"]*" title="ar ', html)) == {"1"}
    assert "75.0 %" in html
