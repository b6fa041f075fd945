import math
import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from lisan.reporting.charts import (
    BOTTOM,
    HEIGHT,
    MAX_POINTS,
    NUM_COLOURS,
    TOP,
    WIDTH,
    bar_chart,
    colour,
    curve_chart,
    format_number,
    line_chart,
    thin,
    ticks,
)


def points_of(svg):
    line = ET.fromstring(svg).find("polyline").get("points")
    return [tuple(map(float, pair.split(","))) for pair in line.split()]


@pytest.mark.parametrize(
    ("low", "high", "count", "expected"),
    [
        (0, 10, 5, [0, 2, 4, 6, 8, 10]),
        (0.3, 10, 5, [2, 4, 6, 8, 10]),
        (0.11, 0.29, 4, [0.15, 0.2, 0.25]),
        (0, 30_000, 3, [0, 10_000, 20_000, 30_000]),
    ],
)
def test_ticks_are_round_numbers_within_the_range(low, high, count, expected):
    assert ticks(low, high, count) == pytest.approx(expected)


@pytest.mark.parametrize(("low", "high"), [(0.11, 0.29), (-3, 7.2), (5, 5), (0, 0), (1e-9, 2e-9)])
def test_outer_ticks_enclose_the_range(low, high):
    found = ticks(low, high, 4, outer=True)
    assert found[0] <= low
    assert found[-1] >= high
    assert len(found) >= 2


def test_a_falling_loss_falls_from_left_to_right_inside_the_chart():
    points = points_of(line_chart([0, 50, 100], [4.0, 2.0, 1.0], "loss"))
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert [y for _, y in points] == sorted(y for _, y in points)
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in points)


def test_a_long_series_is_thinned_and_keeps_its_mean_and_last_step():
    series = [(step, float(step % 7)) for step in range(10_000)]
    found = thin(series)
    assert len(found) <= MAX_POINTS
    assert found[-1][0] == 9_999
    assert sum(value for _, value in found) / len(found) == pytest.approx(3.0, abs=0.01)


def test_a_peak_that_is_looked_for_is_not_averaged_away():
    series = [(step, 9.0 if step == 5_000 else 1.0) for step in range(10_000)]
    assert max(value for _, value in thin(series)) < 2
    assert max(value for _, value in thin(series, keep_peaks=True)) == 9


def test_amounts_begin_at_zero():
    svg = curve_chart({"a": [(1, 60), (2, 61)]}, "memory", from_zero=True)
    assert re.findall(r">([^<]*)</text>", svg)[0] == "0"


def test_values_that_are_not_finite_are_left_out():
    assert len(points_of(line_chart([1, 2, 3], [1.0, math.nan, math.inf], "loss"))) == 1


def test_an_empty_series_is_an_empty_chart():
    assert not list(ET.fromstring(line_chart([], [], "loss")))


def test_a_label_cannot_break_out_of_the_markup():
    svg = line_chart([1, 2], [1.0, 2.0], '"><script>')
    assert not re.search("<script", svg)
    ET.fromstring(svg)


def bars_of(svg):
    """Return (x, y, width, height) of the bars of each series."""
    series = [group.findall("rect") for group in ET.fromstring(svg).findall("g")]
    return [[tuple(float(bar.get(key)) for key in ("x", "y", "width", "height")) for bar in bars] for bars in series]


def test_bars_stand_on_the_floor_and_are_as_high_as_their_values():
    [[one], [two]] = bars_of(bar_chart(["ar"], {"a": [2.0], "b": [4.0]}, "tokens per word"))
    assert one[1] + one[3] == pytest.approx(HEIGHT - BOTTOM, abs=0.2)
    assert two[3] == pytest.approx(2 * one[3], abs=0.2)
    assert two[3] == pytest.approx(HEIGHT - BOTTOM - TOP, abs=0.2)


def test_bars_of_a_group_stand_side_by_side_in_the_order_of_the_series():
    bars = bars_of(bar_chart(["ar", "en"], {"a": [1, 2], "b": [3, 4], "c": [5, 6]}, "x"))
    placed = sorted((bar[0], bar[0] + bar[2]) for series in bars for bar in series)
    assert [series[0][0] for series in bars] == sorted(series[0][0] for series in bars)
    assert all(right <= left for (_, right), (left, _) in pairwise(placed))
    assert max(series[0][0] for series in bars) < min(series[1][0] for series in bars)


@pytest.mark.parametrize("missing", [None, math.nan, math.inf])
def test_a_missing_value_leaves_its_place_empty(missing):
    whole = bars_of(bar_chart(["ar", "en"], {"a": [1.0, 1.0], "b": [2.0, 2.0]}, "x"))
    [first, second] = bars_of(bar_chart(["ar", "en"], {"a": [1.0, missing], "b": [2.0, 2.0]}, "x"))
    assert first == whole[0][:1]
    assert second == whole[1]


def test_many_bars_or_long_names_widen_the_chart_and_nothing_else_does():
    def width(num_groups, num_series, name="ar"):
        svg = bar_chart([name] * num_groups, {str(index): [1.0] * num_groups for index in range(num_series)}, "x")
        bars = [bar for series in bars_of(svg) for bar in series]
        found = float(ET.fromstring(svg).get("viewBox").split()[2])
        assert all(x >= 0 and x + size <= found and size > 4 for x, _, size, _ in bars)
        return found

    assert width(1, 1) == width(5, 5) == width(2, 12) == WIDTH
    assert width(10, 8) > WIDTH
    assert width(6, 2, "ary-Latn-ary") > WIDTH


def test_numbers_stand_above_bars_that_have_room_for_them():
    def numbers(num_series):
        svg = bar_chart(["ar", "en"], {str(index): [1.234, 2.0] for index in range(num_series)}, "x")
        return [text.text for text in ET.fromstring(svg).iter("text") if text.get("class") == "value"]

    assert numbers(2) == ["1.23", "2", "1.23", "2"]
    assert numbers(20) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1690.4, "1,690"),
        (999.7, "1,000"),
        (123_456, "123,456"),
        (12_345_678, "12.3M"),
        (0.0424, "0.0424"),
        (-2, "-2"),
        (0, "0"),
        (1.5e-9, "1.5e-9"),
    ],
)
def test_numbers_on_bars_are_readable(value, text):
    assert format_number(value) == text


def test_bars_of_groups_that_have_a_colour_elsewhere_have_it_here():
    svg = bar_chart(["ar", "en"], {"planned": [1, 2], "read": [2, 1]}, "x", {"en": 0, "ar": 3})
    styles = [group.get("style") for group in ET.fromstring(svg).findall("g/g")]
    assert styles == [colour(3, is_pale=True), colour(0, is_pale=True), colour(3), colour(0)]
    svg = curve_chart({"ar": [(1, 1), (2, 2)], "en": [(1, 2), (2, 1)]}, "x", colours={"en": 0, "ar": 3})
    assert [group.get("style") for group in ET.fromstring(svg).findall("g")] == [colour(3), colour(0)]


def test_every_bar_says_its_series_group_and_value():
    [[title]] = [g.findall("rect/title") for g in ET.fromstring(bar_chart(["ar"], {"a<b": [2.5]}, "x")).findall("g")]
    assert title.text == "a<b, ar: 2.5"


def test_the_same_numbers_give_the_same_bars():
    drawn = [bar_chart(["ar", "en"], {"a": [1 / 3, 2.0], "b": [None, 1e-9]}, "x") for _ in range(2)]
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("svg", [bar_chart(["ar"], {"a": [None]}, "<x>"), curve_chart({"a": [(1, math.nan)]}, "<x>")])
def test_nothing_to_draw_is_an_empty_chart(svg):
    assert not list(ET.fromstring(svg))
    assert ET.fromstring(svg).get("aria-label") == "no <x> recorded"


def test_curves_share_their_axes():
    svg = curve_chart({"a": [(0, 4.0), (100, 2.0)], "b": [(50, 3.0), (0, 4.0)]}, "tokens per word")
    lines = [line.get("points").split() for line in ET.fromstring(svg).iter("polyline")]
    assert lines[0][0] == lines[1][0]
    (left, high), (right, low) = (map(float, lines[0][end].split(",")) for end in (0, 1))
    middle = tuple(map(float, lines[1][1].split(",")))
    assert middle == pytest.approx(((left + right) / 2, (high + low) / 2), abs=0.1)


def test_every_series_has_a_colour_of_its_own_even_past_the_last_one():
    assert colour(1) == "--colour:var(--s1)"
    assert len({colour(index) for index in range(2 * NUM_COLOURS)}) == 2 * NUM_COLOURS
