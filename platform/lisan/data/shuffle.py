"""Random orders that are never written down: where any place of a shuffled sequence lies, by arithmetic.

In: places, the lengths of the sequences they belong to, one key per place. Out: the shuffled places. Always: for one
size and key a permutation of 0..size-1, and the same on every machine. A shuffled epoch of ten million rows costs 0.3 s
and 80 MB to write down; here a thousand places of it cost 0.2 ms and nothing is kept.

A Feistel network on the cells of a grid of about sqrt(size) x sqrt(size), after Black and Rogaway, "Ciphers with
arbitrary finite domains" (2002), section 5: every round adds to one coordinate a hash of the other, so it can
be undone; a cell past the end is sent on until it falls inside (cycle walking).
"""

from typing import Any

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.uint64]

ROUNDS = 8
"Of two half rounds each: with 4, orders of 3 to 6 things are up to 5 % too frequent or too rare, with 8 none is."


def permute(places: npt.NDArray[Any], sizes: npt.NDArray[Any], keys: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Return where each place lies in the shuffled sequence of its size and key; 0 <= place < size."""
    found = np.asarray(places).astype(np.uint64)
    sizes, keys = np.asarray(sizes).astype(np.uint64), np.asarray(keys).astype(np.uint64)
    heights = np.ceil(np.sqrt(sizes)).astype(np.uint64)
    widths = (sizes + heights - 1) // heights
    walking = np.arange(len(found))
    while len(walking):
        found[walking] = _encrypt(found[walking], heights[walking], widths[walking], keys[walking])
        walking = walking[found[walking] >= sizes[walking]]
    return found.astype(np.int64)


def _encrypt(cells: Numbers, heights: Numbers, widths: Numbers, keys: Numbers) -> Numbers:
    """Permute the cells of grids of heights x widths."""
    down, across = np.divmod(cells, widths)
    for turn in range(ROUNDS):
        down = (down + _hash(across + (keys ^ np.uint64(2 * turn)))) % heights
        across = (across + _hash(down + (keys ^ np.uint64(2 * turn + 1)))) % widths
    return down * widths + across


def _hash(values: Numbers) -> Numbers:
    """Hash to 63 bits, so that no sum wraps around: a sum that did would not be undone by a difference."""
    return scramble(values) >> np.uint64(1)


def scramble(values: Numbers) -> Numbers:
    """Hash 64 bits to 64 bits: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
