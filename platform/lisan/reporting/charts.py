"""Draws line and bar charts as inline SVG text, with the colours of the page around it.

Equal numbers give equal text.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TypeVar

X = TypeVar("X", int, float)

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 18, 12, 30
MAX_POINTS = 400
MAX_DOTS = 40
"A series of at most so many points is drawn with dots."
NUM_COLOURS = 8
"Number of series colours in `style.css.jinja`."
BAR_WIDTH, GROUP_GAP = 9.0, 14.0
"Least width of a bar, and gap between two groups, in px."
DIGIT_WIDTH = 4.9
"Width in px of a character of the number above a bar."
PALE = 40
"Per cent of the colour in a pale bar."
LETTER_WIDTH = 6.2
SHRINK = 0.85
"Smallest scale of a wide chart on the page."


def line_chart(steps: Sequence[int], values: Sequence[float], label: str) -> str:
    """Draw values over steps; long series are thinned by averaging, and values that are not finite are left out."""
    points = thin([(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)])
    if not points:
        return _no_chart(label)
    x_ticks = ticks(points[0][0], points[-1][0], 5)
    y_ticks = ticks(min(value for _, value in points), max(value for _, value in points), 4, outer=True)
    x_range, y_range = (points[0][0], points[-1][0]), (y_ticks[0], y_ticks[-1])
    placed = [(_x(step, x_range), _y(value, y_range)) for step, value in points]
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
    floor = HEIGHT - BOTTOM
    area = f"{placed[0][0]:.1f},{floor} {line} {placed[-1][0]:.1f},{floor}"
    grid = [_y_tick(tick, _y(tick, y_range)) for tick in y_ticks]
    grid += [_x_tick(tick, _x(tick, x_range)) for tick in x_ticks]
    title = f"{label} from {points[0][1]:.3f} at step {points[0][0]} to {points[-1][1]:.3f} at step {points[-1][0]}"
    end = f'<circle class="end" cx="{placed[-1][0]:.1f}" cy="{placed[-1][1]:.1f}" r="3.5"/>'
    return _svg(title, [*grid, f'<polygon class="area" points="{area}"/><polyline class="line" points="{line}"/>', end])


def bar_chart(
    groups: Sequence[str],
    series: Mapping[str, Sequence[float | None]],
    label: str,
    colours: Mapping[str, int] | None = None,
) -> str:
    """Draw a bar for every series in every group, from zero up; a missing or not finite value leaves a gap.

    The chart grows wider for many bars or long group names. With `colours`, the bars of a group have its colour, all but the
    last of them pale; without, every series has a colour.
    """
    known = [value for values in series.values() for value in values if value is not None and math.isfinite(value)]
    if not known:
        return _no_chart(label)
    step = _group_width(groups, len(series))
    bar = (step - GROUP_GAP) / len(series)
    width = LEFT + RIGHT + step * len(groups)
    y_ticks = ticks(min(0.0, *known), max(known), 5, outer=True)
    y_range = (y_ticks[0], y_ticks[-1])
    parts = [_y_tick(tick, _y(tick, y_range), width) for tick in y_ticks]
    centres = [LEFT + step * (place + 0.5) for place in range(len(groups))]
    parts += [_x_label(group, centre) for group, centre in zip(groups, centres, strict=True)]
    has_room = bar >= DIGIT_WIDTH * max(len(format_number(value)) for value in known)
    for index, (name, values) in enumerate(series.items()):
        shift = bar * (index - len(series) / 2)
        named = [f"{name}, {group}" for group in groups]
        bars = [
            _bar(centre + shift, bar, value, y_range, title, has_room)
            for centre, value, title in zip(centres, values, named, strict=True)
        ]
        if colours is not None:
            styles = [colour(colours[group], is_pale=index < len(series) - 1) for group in groups]
            bars = [f'<g style="{style}">{drawn}</g>' for style, drawn in zip(styles, bars, strict=True)]
        parts += [f'<g style="{colour(index)}">', *bars, "</g>"]
    return _svg(f"{label}: {len(series)} bars for each of {', '.join(groups)}", parts, width)


def curve_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    from_zero: bool = False,
    keep_peaks: bool = False,
    colours: Mapping[str, int] | None = None,
) -> str:
    """Draw the (x, y) points of several series in one chart, long ones thinned; `colours` fixes the colour index of a series.

    `from_zero` starts the y axis at zero; `keep_peaks` thins by the maximum instead of the mean.
    """
    points = {name: thin(_finite(line), keep_peaks) for name, line in series.items()}
    every = [point for line in points.values() for point in line]
    if not every:
        return _no_chart(label)
    x_range = (min(x for x, _ in every), max(x for x, _ in every))
    lowest, highest = min(y for _, y in every), max(y for _, y in every)
    y_ticks = ticks(min(lowest, 0.0) if from_zero else lowest, highest, 4, outer=True)
    y_range = (y_ticks[0], y_ticks[-1])
    parts = [_y_tick(tick, _y(tick, y_range)) for tick in y_ticks]
    parts += [_x_tick(tick, _x(tick, x_range)) for tick in ticks(*x_range, 5)]
    for number, (name, line) in enumerate(points.items()):
        index = (colours or {}).get(name, number)
        placed = [(_x(x, x_range), _y(y, y_range)) for x, y in line]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        marked = placed if len(placed) <= MAX_DOTS else placed[-1:]
        dots = "".join(f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="2.5"/>' for x, y in marked)
        parts.append(
            f'<g style="{colour(index)}"><title>{escape(name)}</title><polyline class="curve" points="{drawn}"/>{dots}</g>'
        )
    return _svg(f"{label}: {', '.join(series)}", parts)


def colour(index: int, is_pale: bool = False) -> str:
    """Return the style of a series' colour; colours repeat, paler, after the last one."""
    base = f"var(--s{index % NUM_COLOURS})"
    share = PALE if is_pale else max(25, 100 - 45 * (index // NUM_COLOURS))
    return f"--colour:{base if share == 100 else f'color-mix(in srgb,{base} {share}%,var(--card))'}"


def _finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    return sorted(point for point in points if all(map(math.isfinite, point)))


def thin(points: list[tuple[X, float]], keep_peaks: bool = False) -> list[tuple[X, float]]:
    """Average runs of neighbours until at most MAX_POINTS are left, or take their maximum; each keeps the last step of its run."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    values = [[value for _, value in run] for run in runs]
    return [
        (run[-1][0], max(own) if keep_peaks else sum(own) / len(own)) for run, own in zip(runs, values, strict=True)
    ]


def ticks(low: float, high: float, count: int, outer: bool = False) -> list[float]:
    """Return about `count` round numbers between low and high, 1, 2 or 5 times a power of ten apart.

    `outer` adds the round numbers just outside, so that they enclose the range.

    >>> ticks(0.3, 10, 5)
    [2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high - low <= 1e-12 * max(abs(low), abs(high)):
        around = abs(low) / 2 or 0.5
        low, high = (low - around, low + around) if outer else (low, low + 1)
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = low / gap, high / gap
    first, last = (math.floor(first), math.ceil(last)) if outer else (math.ceil(first - 1e-9), math.floor(last + 1e-9))
    return [round(number * gap, 12) for number in range(int(first), int(last) + 1)]


def _x(step: float, span: tuple[float, float]) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * (step - span[0]) / ((span[1] - span[0]) or 1)


def _y(value: float, span: tuple[float, float]) -> float:
    return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (value - span[0]) / ((span[1] - span[0]) or 1)


def _y_tick(tick: float, y: float, width: float = WIDTH) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{width - RIGHT:g}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{format_tick(tick)}</text>'


def _x_tick(tick: float, x: float) -> str:
    return _x_label(format_tick(tick), x)


def format_tick(tick: float) -> str:
    """Return a round number in a short form for an axis.

    >>> format_tick(1_500_000), format_tick(20_000), format_tick(0.00015), format_tick(0.25)
    ('1.5M', '20k', '1.5e-4', '0.25')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(tick) >= size:
            return f"{tick / size:g}{unit}"
    if 0 < abs(tick) < 1e-3:
        power = math.floor(math.log10(abs(tick)) + 1e-9)
        return f"{tick / 10**power:.3g}e{power}"
    return f"{tick:,g}"


def format_number(value: float) -> str:
    """Return a value with three digits, or with all digits before the point.

    >>> format_number(1690.4), format_number(999.7), format_number(0.0424), format_number(12_345_678)
    ('1,690', '1,000', '0.0424', '12.3M')
    """
    short = float(f"{value:.3g}")
    return f"{value:,.0f}" if 1e3 <= abs(short) < 1e6 else format_tick(short)


def _x_label(text: str, x: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{escape(text)}</text>'


def _group_width(groups: Sequence[str], num_bars: int) -> float:
    named = max(len(group) for group in groups) * LETTER_WIDTH + 8
    return max((WIDTH - LEFT - RIGHT) / len(groups), num_bars * BAR_WIDTH + GROUP_GAP, named)


def _bar(
    x: float, width: float, value: float | None, y_range: tuple[float, float], title: str, is_numbered: bool
) -> str:
    if value is None or not math.isfinite(value):
        return ""
    top, floor = sorted((_y(value, y_range), _y(0.0, y_range)))
    shape = f'x="{x + 0.5:.1f}" y="{top:.1f}" width="{width - 1:.1f}" height="{floor - top:.1f}"'
    number = format_number(value)
    text = f'<text class="value" x="{x + width / 2:.1f}" y="{top - 3:.1f}" text-anchor="middle">{number}</text>'
    name = escape(f"{title}: {number}")
    return f'<rect class="block" {shape}><title>{name}</title></rect>{text if is_numbered else ""}'


def _no_chart(label: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="no {escape(label)} recorded"></svg>'


def _svg(title: str, parts: Iterable[str], width: float = WIDTH) -> str:
    """Return the SVG element; a wide chart has a least width, so that the page scrolls before its text becomes too small."""
    least = "" if width <= WIDTH else f' style="min-width:{SHRINK * width:.0f}px"'
    box = f'viewBox="0 0 {width:g} {HEIGHT}"'
    name = escape(title)
    return f'<svg {box} role="img"{least} aria-label="{name}"><title>{name}</title>{"".join(parts)}</svg>'
