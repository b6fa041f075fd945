"""The mix: from weights to a row order that any worker can compute for any step.

In: rows per source, weights for the run and for stages of it, a seed. Out: `Plan.rows(start, stop)`, the ids of rows
start..stop of the run. Always: a pure function; the order does not depend on the number of workers; each block holds
every source in exact proportion; a source is read through, over all stages, before a row of it comes again.
Block-deterministic mixture after Levanter: resume is one integer. Weights count tokens, because rows have one length.
"""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from lisan.core.errors import ConfigError
from lisan.core.seed import derive_seed
from lisan.data.config import MixConfig
from lisan.data.shuffle import permute, scramble

CYCLE_ROWS = 1000
"Rows in which every weight is met to one row; 0.1 % is the finest weight."
EPOCH_KEY = np.uint64(0x9E3779B97F4A7C15)
"Odd, so that every epoch of a source has another key: the step of SplitMix64."

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Phase:
    """A part of the run with one set of weights."""

    first_position: int
    counts: tuple[int, ...]
    "Rows of each source per block."
    rows_before: tuple[int, ...]
    "Rows of each source that the parts before have read."


@dataclass(frozen=True)
class Plan:
    """The row order of a run; places beyond its end go on in the last phase."""

    sources: tuple[str, ...]
    first_rows: tuple[int, ...]
    num_rows: tuple[int, ...]
    phases: tuple[Phase, ...]
    seed: int

    def rows(self, start: int, stop: int) -> Numbers:
        """Return the row ids at places start..stop of the run; any range, at once."""
        parts = [np.empty(0, np.int64)]
        while start < stop:
            number, block, offset = self._locate(start)
            phase_end = self.phases[number + 1].first_position if number + 1 < len(self.phases) else stop
            ids = _block(self, number, block)[offset : offset + min(stop, phase_end) - start]
            parts.append(ids)
            start += len(ids)
        return np.concatenate(parts)

    def rows_read(self, num_positions: int) -> tuple[int, ...]:
        """Return how many rows of each source the first places of the run hold."""
        number, block, offset = self._locate(num_positions)
        phase = self.phases[number]
        begun = np.bincount(_pattern(self, number, block)[:offset], minlength=len(self.sources))
        return tuple((np.array(phase.rows_before) + np.array(phase.counts) * block + begun).tolist())

    def epochs(self, num_positions: int) -> dict[str, float]:
        """Return how often each source of the mix has been read after that many places of the run."""
        counts = zip(*(phase.counts for phase in self.phases), strict=True)
        draws = zip(self.sources, self.rows_read(num_positions), self.num_rows, counts, strict=True)
        return {source: rows_before / size for source, rows_before, size, count in draws if any(count)}

    def _locate(self, place: int) -> tuple[int, int, int]:
        """Return the phase of a place, its block there, and the place within the block."""
        number = bisect_right(self.phases, place, key=lambda phase: phase.first_position) - 1
        phase = self.phases[number]
        return number, *divmod(place - phase.first_position, sum(phase.counts))


@lru_cache(maxsize=8)
def _pattern(plan: Plan, number: int, block: int) -> Numbers:
    """Return the index of the source at each place of a block."""
    phase = plan.phases[number]
    pattern = np.repeat(np.arange(len(plan.sources)), phase.counts)
    np.random.default_rng(derive_seed(plan.seed, "block", phase.first_position, block)).shuffle(pattern)
    return pattern


@lru_cache(maxsize=8)
def _block(plan: Plan, number: int, block: int) -> Numbers:
    """Return the row ids of a block.

    The places of a source take its draws in order, so that a block which a stage cuts short leaves no draw out.
    """
    phase, pattern = plan.phases[number], _pattern(plan, number, block)
    starts = np.array(phase.rows_before) + np.array(phase.counts) * block
    draws = np.empty_like(pattern)
    draws[np.argsort(pattern, kind="stable")] = np.concatenate(
        [np.arange(start, start + count) for start, count in zip(starts, phase.counts, strict=True)]
    )
    return np.array(plan.first_rows)[pattern] + _shuffle_rows(plan, pattern, draws)


def _shuffle_rows(plan: Plan, pattern: Numbers, draws: Numbers) -> Numbers:
    """Return which row of its source each draw takes: epoch after epoch, each in an order of its own."""
    sizes = np.array(plan.num_rows)[pattern]
    epochs, places = np.divmod(draws, sizes)
    keys = np.array([derive_seed(plan.seed, source) for source in plan.sources], np.uint64)[pattern]
    return permute(places, sizes, scramble(keys + EPOCH_KEY * epochs.astype(np.uint64)))


def make_plan(num_rows: Mapping[str, int], config: MixConfig, num_steps: int, step_rows: int) -> Plan:
    """Plan a run over `num_rows` rows per source (alphabetical, laid end to end), `step_rows` of them a step.

    Raises ConfigError for a source that does not exist, for one that the run would repeat too often and for a stage
    that the run does not reach.
    """
    sources = tuple(sorted(num_rows))
    sizes = tuple(int(num_rows[source]) for source in sources)
    _check_sources("mix.epoch_caps", config.epoch_caps, sources)
    firsts = tuple(int(x) for x in np.cumsum((0, *sizes))[:-1])
    plan = Plan(sources, firsts, sizes, (), config.seed)
    for key, from_step, weights in config.phases():
        if from_step >= num_steps:
            raise ConfigError(
                f"{key.replace('weights', 'from_step')} is {from_step} but the run ends after {num_steps} steps; "
                "lower it, raise loop.num_steps or leave the stage out"
            )
        counts = _counts(key, weights, num_rows)
        place = from_step * step_rows
        rows_before = plan.rows_read(place) if plan.phases else (0,) * len(sources)
        plan = replace(plan, phases=(*plan.phases, Phase(place, counts, rows_before)))
    _check_epochs(plan.epochs(num_steps * step_rows), config)
    return plan


def plan_shares(num_rows: Mapping[str, int], config: MixConfig, num_steps: int) -> dict[str, float]:
    """Return the share of a whole run that the mix gives to each source, in the order of their names."""
    starts = [from_step for _, from_step, _ in config.phases()] + [num_steps]
    planned = dict.fromkeys(sorted(num_rows), 0.0)
    for (_, start, weights), stop in zip(config.phases(), starts[1:], strict=True):
        amounts = {source: weights.get(source, 0.0) if weights else num_rows[source] for source in planned}
        for source, amount in amounts.items():
            planned[source] += amount / sum(amounts.values()) * (stop - start) / num_steps
    return planned


def _check_sources(key: str, named: Mapping[str, Any], sources: tuple[str, ...]) -> None:
    if unknown := sorted(set(named) - set(sources)):
        raise ConfigError(f"{key} names {unknown[0]}, but the tokens hold {', '.join(sources)}")


def _counts(key: str, weights: Mapping[str, float], num_rows: Mapping[str, int]) -> tuple[int, ...]:
    """Return the rows of each source per block."""
    sources = tuple(sorted(num_rows))
    _check_sources(key, weights, sources)
    if empty := [source for source in sources if weights.get(source, 0) > 0 and not num_rows[source]]:
        raise ConfigError(f"{key}.{empty[0]} is above 0 but the source has no rows")
    shares = np.array([weights.get(source, 0.0) if weights else num_rows[source] for source in sources], float)
    if np.count_nonzero(shares) > CYCLE_ROWS:
        raise ConfigError(f"{key} mix {np.count_nonzero(shares)} sources; {CYCLE_ROWS} is the most, join some of them")
    return _apportion(shares / shares.sum(), CYCLE_ROWS)


def _check_epochs(epochs: Mapping[str, float], config: MixConfig) -> None:
    """Refuse a run that would read a source more often than it may be read."""
    for source, read in epochs.items():
        cap = config.epoch_caps.get(source, config.max_epochs)
        if read > cap:
            name = f"mix.epoch_caps.{source}" if source in config.epoch_caps else "mix.max_epochs"
            raise ConfigError(
                f"the run would read {source} {read:.4g} times, {name} is {cap:g}; "
                "lower its weight or the number of steps, or raise the cap"
            )


def _apportion(shares: npt.NDArray[np.float64], total: int) -> tuple[int, ...]:
    """Split `total` by shares in whole rows, the largest remainders first; a source with any share gets a row.

    Rows of the smallest sources above their share are taken from the sources with the largest excess.
    """
    exact = np.round(shares * total, 9)  # 0.29 * 100 is 28.999999999999996
    counts = np.maximum(np.floor(exact), shares > 0).astype(int)
    while counts.sum() < total:
        counts[np.argmax(exact - counts)] += 1
    while counts.sum() > total:
        counts[np.argmax(np.where(counts > 1, counts - exact, -np.inf))] -= 1
    return tuple(counts.tolist())
