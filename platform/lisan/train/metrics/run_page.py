"""Draws the page of a training run: its facts, its progress, and charts of its metrics by step.

One HTML file without scripts or links, a pure function of the header and lines of the run log: a resumed run has one page.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lisan.reporting.charts import bar_chart, colour, curve_chart
from lisan.reporting.render import render_template
from lisan.train.metrics.progress_line import format_bytes, format_count, format_seconds

Lines = Sequence[Mapping[str, Any]]
Series = dict[str, list[tuple[float, float]]]
MAX_SKIPS = 10
BY_NAME = "/(.+)"
"In the pattern of a plot with a series for each source or language."
READ = "read/tokens/"
"Before the name of a source: tokens of it that were read by the last checkpoint."


@dataclass(frozen=True)
class Plot:
    """A chart of the page: a series for each metric that its pattern matches, by the name within it."""

    title: str
    unit: str
    pattern: str
    scale: float = 1.0
    from_zero: bool = False
    "Whether it is an amount, of which small changes are not to look large."
    keep_peaks: bool = False
    "Whether spikes must stay visible."


PLOTS = (
    Plot("loss", "nats a target", r"(train|validation)/loss"),
    Plot("loss by language", "nats a token", r"train/language_loss/(.+)"),
    Plot("loss by source", "nats a token", r"train/loss/(.+)"),
    Plot("validation by language", "nats a token", r"validation/language_loss/(.+)"),
    Plot("validation by source", "nats a token", r"validation/loss/(.+)"),
    Plot("accuracy", "share of pairs", r"train/(accuracy)"),
    Plot("margin", "chosen less rejected", r"train/(margin)"),
    Plot("reward", "beta x log-ratio", r"train/(chosen|rejected)_reward"),
    Plot("moved from the reference", "nats a token", r"train/(chosen|rejected)_kl"),
    Plot("KTO's anchor", "nats a reply", r"train/(kl)"),
    Plot("learning rate", "by step", r"train/(lr)"),
    Plot("gradient norm", "before clipping", r"train/(grad_norm)", keep_peaks=True),
    Plot("z-loss", "nats a target", r"train/(z_loss)"),
    Plot("log Z", "nats", r"train/(log_z)"),
    Plot("tokens per second", "all workers", r"train/(tokens_per_second)", 1, True),
    Plot("MFU", "per cent", r"train/(mfu)_ratio", 100, True),
    Plot("time waiting for data", "per cent", r"train/(data_wait)_ratio", 100, True),
    Plot("memory", "GB, the worker with most", r"train/(memory|peak_memory)_bytes", 1e-9, True),
)


def render_run(header: Mapping[str, Any], lines: Lines) -> str:
    colours = choose_colours(header, lines)
    return render_template(
        "train/metrics",
        "run.html.jinja",
        title=header["title"],
        state=_describe_state(header, lines),
        tiles=_make_tiles(header, lines),
        plots=[_draw(plot, lines, colours) for plot in PLOTS if find_series(plot, lines)],
        mix=_draw_mix(header, lines, colours),
        facts=dict(header["facts"]),
    )


def choose_colours(header: Mapping[str, Any], lines: Lines) -> dict[str, int]:
    """Return the colour index of every source and language on all charts of the page.

    Trained sources come first, then their languages, then sources and languages of the validation rows alone.
    """
    drawn = (name for plot in PLOTS if BY_NAME in plot.pattern for name in find_series(plot, lines))
    names = dict.fromkeys([*header["planned"], *header["languages"].values(), *drawn])
    return {name: index for index, name in enumerate(names)}


def find_series(plot: Plot, lines: Lines) -> Series:
    """Return the points of every metric that a plot shows, by name, in the order of the names."""
    matches = ((key, re.fullmatch(plot.pattern, key)) for key in {key for line in lines for key in line})
    is_free = BY_NAME in plot.pattern
    names = {key: match[1] if is_free else match[1].replace("_", " ") for key, match in matches if match}
    found = {
        name: [(line["step"], line[key] * plot.scale) for line in lines if key in line] for key, name in names.items()
    }
    return dict(sorted(found.items()))


def _draw(plot: Plot, lines: Lines, colours: Mapping[str, int]) -> tuple[Plot, str, list[tuple[str, str]]]:
    """Return a chart and its key, which a single series does not need."""
    series = find_series(plot, lines)
    own = colours if BY_NAME in plot.pattern else {name: index for index, name in enumerate(series)}
    key = [(name, colour(own[name])) for name in series] if len(series) > 1 else []
    return plot, curve_chart(series, f"{plot.title} by step", plot.from_zero, plot.keep_peaks, own), key


def _draw_mix(header: Mapping[str, Any], lines: Lines, colours: Mapping[str, int]) -> dict[str, object]:
    """Return read and planned shares of the sources, in per cent; empty before the first checkpoint."""
    read = {key.removeprefix(READ): value for key, value in _last(lines, lambda key: key.startswith(READ)).items()}
    if not read:
        return {}
    total = sum(read.values())
    planned: Mapping[str, float] = header["planned"]
    sources = [source for source in planned if planned[source] or read.get(source)]
    shares = {source: 100 * read.get(source, 0.0) / total for source in sources}
    series = {"planned": [100 * planned[source] for source in sources], "read": list(shares.values())}
    by_size = sorted(sources, key=lambda source: -shares[source])
    return {
        "parts": [(source, shares[source], read.get(source, 0.0), colour(colours[source])) for source in by_size],
        "chart": bar_chart(sources, series, "share of the tokens by source, per cent", colours),
        "languages": header["languages"],
    }


def _make_tiles(header: Mapping[str, Any], lines: Lines) -> list[tuple[str, str, str]]:
    """Return the figures at the top: what, how much, and a word on it."""
    last = _last(lines, lambda _: True)
    first = next((line["train/loss"] for line in lines if "train/loss" in line), None)
    read = sum(value for key, value in last.items() if key.startswith(READ))
    step, num_steps = last.get("step", 0), header["num_steps"]
    tiles = [("steps", f"{step:,}", f"of {num_steps:,}")]
    if first is not None:
        tiles.append(("loss", f"{last['train/loss']:.3f}", f"from {first:.3f}"))
        tiles.append(("tokens/s", format_count(_mean(lines, "train/tokens_per_second")), "mean of the run"))
    if "train/mfu_ratio" in last:
        tiles.append(("MFU", f"{100 * _mean(lines, 'train/mfu_ratio'):.1f} %", f"of {header['facts']['MFU of']}"))
    if read:
        tiles.append(("tokens", format_count(read), "read, without padding"))
    if "train/peak_memory_bytes" in last:
        tiles.append(("memory", format_bytes(last["train/peak_memory_bytes"]), "at most, a worker"))
    tiles.append(("time", format_seconds(last.get("seconds", 0.0)), "training"))
    return tiles


def _describe_state(header: Mapping[str, Any], lines: Lines) -> list[str]:
    """Return sentences on what did not go straight on."""
    said = []
    if resumed := header.get("resumed"):
        said.append(f"Went on from a checkpoint at step {', '.join(f'{step:,}' for step in resumed)}.")
    skipped = [line["skipped"] for line in lines if "skipped" in line]
    said += [f"{reason[0].upper()}{reason[1:]}." for reason in skipped[:MAX_SKIPS]]
    if len(skipped) > MAX_SKIPS:
        said.append(f"And {len(skipped) - MAX_SKIPS:,} more steps were skipped.")
    return said


def _last(lines: Lines, wanted: Callable[[str], bool]) -> dict[str, Any]:
    """Return the last value of every metric."""
    return {key: value for line in lines for key, value in line.items() if wanted(key)}


def _mean(lines: Lines, key: str) -> float:
    """Return the mean of a metric over the run, each interval by the time that it took."""
    total, weight, before = 0.0, 0.0, 0.0
    for line in lines:
        if key in line:
            seconds = max(line["seconds"] - before, 1e-9)
            total, weight, before = total + line[key] * seconds, weight + seconds, line["seconds"]
    return total / weight if weight else 0.0
