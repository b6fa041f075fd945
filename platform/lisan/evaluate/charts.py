"""Line charts as inline SVG.

In: steps and values. Out: an SVG element as text, which takes its colours from the page around it. Always: the same
numbers give the same text. `page` is the caller.
"""

import math
from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 480, 220
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 30
MAX_POINTS = 400


def line_chart(steps: Sequence[int], values: Sequence[float], label: str) -> str:
    """Draw values over steps; long series are thinned by averaging, values that are not finite are left out."""
    points = thin([(step, value) for step, value in zip(steps, values, strict=True) if math.isfinite(value)])
    if not points:
        return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="no {escape(label)} recorded"></svg>'
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
    return "".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}"><title>{escape(title)}</title>',
            *grid,
            f'<polygon class="area" points="{area}"/><polyline class="line" points="{line}"/>',
            f'<circle class="end" cx="{placed[-1][0]:.1f}" cy="{placed[-1][1]:.1f}" r="3.5"/></svg>',
        ]
    )


def thin(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Average runs of neighbours until at most MAX_POINTS are left; each keeps the last step of its run."""
    size = math.ceil(len(points) / MAX_POINTS)
    if size <= 1:
        return points
    runs = [points[start : start + size] for start in range(0, len(points), size)]
    return [(run[-1][0], sum(value for _, value in run) / len(run)) for run in runs]


def ticks(low: float, high: float, count: int, outer: bool = False) -> list[float]:
    """Return about `count` round numbers between low and high, 1, 2 or 5 times a power of ten apart.

    `outer` adds the round numbers just outside, so that they enclose the range.

    >>> ticks(0.3, 10, 5)
    [2.0, 4.0, 6.0, 8.0, 10.0]
    """
    if high <= low:
        low, high = (low - 0.5, low + 0.5) if outer else (low, low + 1)
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


def _y_tick(tick: float, y: float) -> str:
    line = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return f'{line}<text class="tick" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>'


def _x_tick(tick: float, x: float) -> str:
    return f'<text class="tick" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="middle">{tick:,g}</text>'
