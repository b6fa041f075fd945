import math
import re
import xml.etree.ElementTree as ET

import pytest

from lisan.evaluate.charts import HEIGHT, MAX_POINTS, WIDTH, line_chart, thin, ticks


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


def test_values_that_are_not_finite_are_left_out():
    assert len(points_of(line_chart([1, 2, 3], [1.0, math.nan, math.inf], "loss"))) == 1


def test_an_empty_series_is_an_empty_chart():
    assert not list(ET.fromstring(line_chart([], [], "loss")))


def test_a_label_cannot_break_out_of_the_markup():
    svg = line_chart([1, 2], [1.0, 2.0], '"><script>')
    assert not re.search("<script", svg)
    ET.fromstring(svg)
