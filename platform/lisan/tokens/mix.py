"""The mix: from weights to a row order that any worker can compute for any step.

In: rows per source, weights, a seed. Out: `Plan.rows(start, stop)`, the ids of rows start..stop of the run. Always: a
pure function; the order does not depend on the number of workers; each block holds every source in exact proportion.
Block-deterministic mixture after Levanter: resume is one integer. Weights count tokens, because rows have one length.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lisan.core.errors import ConfigError
from lisan.core.seed import derive_seed

BLOCK_ROWS = 1000
"Rows in which every weight is met to one row; 0.1 % is the finest weight."


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    weights: dict[str, float] = field(default_factory=dict)
    "Share of the tokens that each source gives; empty takes every source in proportion to its size."
    max_epochs: float = 20.0
    "How often a source may repeat within the run; scarce target text bears 15-20 repetitions."
    seed: int = 0

    def __post_init__(self) -> None:
        bad = {source: weight for source, weight in self.weights.items() if not weight >= 0}
        if bad:
            raise ConfigError(f"mix.weights must be >= 0, got {bad}")
        if self.weights and sum(self.weights.values()) <= 0:
            raise ConfigError("mix.weights sum to nothing; give at least one source a weight above 0")


@dataclass(frozen=True)
class Plan:
    """The row order of a run."""

    sources: tuple[str, ...]
    first_rows: tuple[int, ...]
    num_rows: tuple[int, ...]
    counts: tuple[int, ...]
    "Rows of each source per block."
    seed: int

    @property
    def block_rows(self) -> int:
        return sum(self.counts)

    def rows(self, start: int, stop: int) -> npt.NDArray[np.int64]:
        """Return the row ids at places start..stop of the run; any range, at once."""
        first, last = start // self.block_rows, -(-stop // self.block_rows)
        blocks = [self._block(block) for block in range(first, last)]
        offset = first * self.block_rows
        return np.concatenate([*blocks, np.empty(0, np.int64)])[start - offset : stop - offset].astype(np.int64)

    def _block(self, block: int) -> npt.NDArray[np.int64]:
        parts = [
            first + self._draw(source, size, block * count, count)
            for source, first, size, count in zip(
                self.sources, self.first_rows, self.num_rows, self.counts, strict=True
            )
        ]
        ids = np.concatenate(parts)
        np.random.default_rng(derive_seed(self.seed, "block", block)).shuffle(ids)
        return ids

    def _draw(self, source: str, size: int, start: int, count: int) -> npt.NDArray[np.int64]:
        """Return draws start..start+count of a source: epoch after epoch, each in an order of its own."""
        draws = np.arange(start, start + count)
        out = np.empty(count, np.int64)
        for epoch in range(start // size, (start + count - 1) // size + 1 if count else 0):
            order = np.random.default_rng(derive_seed(self.seed, source, epoch)).permutation(size)
            here = draws // size == epoch
            out[here] = order[draws[here] % size]
        return out

    def epochs(self, num_places: int) -> dict[str, float]:
        """Return how often each source has been read after that many places of the run."""
        share = num_places / self.block_rows
        return {s: share * c / n for s, c, n in zip(self.sources, self.counts, self.num_rows, strict=True) if c}


def make_plan(num_rows: Mapping[str, int], config: MixConfig, num_places: int) -> Plan:
    """Plan a run of `num_places` rows over `num_rows` rows per source (alphabetical, laid end to end).

    Raises ConfigError for a source that does not exist and for one that the run would repeat too often.
    """
    sources = tuple(sorted(num_rows))
    unknown = sorted(set(config.weights) - set(sources))
    if unknown:
        raise ConfigError(f"mix.weights names {unknown[0]}, but the tokens hold {', '.join(sources)}")
    weights = np.array([config.weights.get(s, 0.0) if config.weights else num_rows[s] for s in sources], float)
    sizes = np.array([num_rows[s] for s in sources])
    if empty := [s for s, w, n in zip(sources, weights, sizes, strict=True) if w > 0 and n == 0]:
        raise ConfigError(f"mix.weights.{empty[0]} is above 0 but the source has no rows")
    counts = _apportion(weights / weights.sum(), BLOCK_ROWS)
    firsts = tuple(int(x) for x in np.concatenate([[0], np.cumsum(sizes)[:-1]]))
    plan = Plan(sources, firsts, tuple(int(n) for n in sizes), counts, config.seed)
    for source, epochs in plan.epochs(num_places).items():
        if epochs > config.max_epochs:
            raise ConfigError(
                f"the run would read {source} {epochs:.1f} times, mix.max_epochs is {config.max_epochs:g}; "
                f"lower mix.weights.{source} or the number of steps, or raise the cap"
            )
    return plan


def _apportion(shares: npt.NDArray[np.float64], total: int) -> tuple[int, ...]:
    """Split `total` by shares in whole rows, the largest remainders first; a source with any share gets a row."""
    exact = shares * total
    counts = np.floor(exact).astype(int)
    counts[(shares > 0) & (counts == 0)] = 1
    for index in np.argsort(-(exact - counts), kind="stable")[: max(0, total - counts.sum())]:
        counts[index] += 1
    return tuple(int(count) for count in counts)
