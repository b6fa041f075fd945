"""Continue byte-pair encoding where a base tokenizer stopped: pure Python on word counts, no tokenizer object.

In: distinct words as ids of the base, how often each occurs, and the bytes of every id. Out: merges in order, each
making one new piece. Always: every piece is new and every merge's parts exist before it, so that appended after the
base's own merges they are applied in exactly this order, and only to text that holds a character of the target scripts.
`tokens/expand.py` is the caller.
"""

import heapq
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise

from lisan.core.errors import ConfigError

Merge = tuple[int, int]
_SHIFT = 32
_MASK = (1 << _SHIFT) - 1


class Script:
    """Characters of the target scripts, by the words of their Unicode names (`arabic`, `tifinagh`, `devanagari`)."""

    def __init__(self, names: Sequence[str]) -> None:
        wanted = {name.upper() for name in names}
        found: set[str] = set()
        owners: dict[bytes, bool] = {}
        self.characters: set[str] = set()
        is_ours = False
        for character in map(chr, range(0x80, 0x20000)):
            words = set(unicodedata.name(character, "").replace("-", " ").split())
            if not words:
                continue
            # U+060B AFGHANI SIGN and U+FDFC RIAL SIGN lie among Arabic letters and belong to them.
            is_ours = not wanted.isdisjoint(words) or (is_ours and unicodedata.category(character) == "Sc")
            found |= wanted & words
            if is_ours:
                self.characters.add(character)
            encoded = character.encode()
            for length in range(1, len(encoded)):
                owners[encoded[:length]] = owners.get(encoded[:length], True) and is_ours
        if missing := sorted(wanted - found):
            raise ConfigError(
                f"scripts: no character of Unicode has {missing[0]} in its name; use names such as arabic or tifinagh"
            )
        self.prefixes = frozenset(prefix for prefix, is_ours in owners.items() if is_ours)
        "First bytes that no character of another script has."

    def occurs_in(self, text: str) -> bool:
        return not self.characters.isdisjoint(text)

    def owns(self, piece: bytes) -> bool:
        """Tell whether a piece can occur only in text of these scripts.

        It may begin inside a character (the base cuts there too), must then hold or begin one of these scripts, and
        holds no other non-ASCII character: `"` and `é` of the protected languages are never part of a new piece.
        """
        start = 0
        while start < len(piece) and 0x80 <= piece[start] < 0xC0:
            start += 1
        body, tail = _cut_tail(piece[start:])
        others = [character for character in body.decode("utf-8", "replace") if character > "\x7f"]
        if tail and tail not in self.prefixes:
            return False
        return bool(tail or others) and all(character in self.characters for character in others)


@lru_cache(maxsize=4)
def script(names: tuple[str, ...]) -> Script:
    return Script(names)


def _cut_tail(data: bytes) -> tuple[bytes, bytes]:
    """Split off the character that the last bytes begin and do not finish."""
    for back in range(1, min(4, len(data) + 1)):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return (data[:-back], data[-back:]) if back < length else (data, b"")
        if byte < 0x80:
            break
    return data, b""


def learn_merges(
    words: list[list[int]],
    counts: Sequence[int],
    pieces: Sequence[bytes],
    num_merges: int,
    owns: Callable[[bytes], bool],
    min_count: int = 2,
) -> list[Merge]:
    """Merge the most frequent pair again and again; ids of new pieces go on from `len(pieces)`.

    `words` is consumed (merged in place). Ties go to the pair with the lower ids, so that the result depends on nothing
    but the input. Stops early when no pair of the target scripts occurs `min_count` times.
    """
    known = list(pieces)
    taken = set(known)
    table = _PairTable(words, counts, min_count, lambda left, right: owns(known[left] + known[right]))
    merges: list[Merge] = []
    while len(merges) < num_merges and (pair := table.pop()) is not None:
        piece = known[pair[0]] + known[pair[1]]
        if piece in taken:
            # Only a piece that the base holds but its merges never reach: waking it would set off merges of its own.
            continue
        known.append(piece)
        taken.add(piece)
        table.merge(pair, len(known) - 1)
        merges.append(pair)
    return merges


class _PairTable:
    """Counts of adjacent pairs over all words, kept up to date merge by merge.

    A pair only loses occurrences after it was first counted (new ones always contain the newest piece), so that a heap
    entry is an upper bound: the one on top is either current or pushed back with its current count.
    """

    def __init__(
        self, words: list[list[int]], counts: Sequence[int], min_count: int, is_wanted: Callable[[int, int], bool]
    ) -> None:
        self.words, self.word_counts = words, counts
        self.min_count, self.is_wanted = min_count, is_wanted
        self.counts: dict[int, int] = {}
        self.places: dict[int, list[int]] = {}
        self.heap: list[tuple[int, int]] = []
        counted: dict[int, int] = {}
        places: dict[int, list[int]] = {}
        for index, word in enumerate(words):
            times = counts[index]
            for left, right in pairwise(word):
                key = left << _SHIFT | right
                counted[key] = counted.get(key, 0) + times
                places.setdefault(key, []).append(index)
        self._add(counted, places)

    def _add(self, counted: dict[int, int], places: dict[int, list[int]]) -> None:
        for key, count in counted.items():
            if count >= self.min_count and self.is_wanted(key >> _SHIFT, key & _MASK):
                self.counts[key], self.places[key] = count, places[key]
                heapq.heappush(self.heap, (-count, key))

    def pop(self) -> Merge | None:
        """Take the most frequent pair out of the table."""
        while self.heap:
            bound, key = heapq.heappop(self.heap)
            count = self.counts[key]
            if count == -bound:
                del self.counts[key]
                return key >> _SHIFT, key & _MASK
            if count >= self.min_count:
                heapq.heappush(self.heap, (-count, key))
        return None

    def merge(self, pair: Merge, piece: int) -> None:
        """Replace the pair by `piece` in every word that holds it, and count the pairs this makes and unmakes."""
        left, right = pair
        fresh: dict[int, int] = {}
        fresh_places: dict[int, list[int]] = {}
        for index in self.places.pop(left << _SHIFT | right):
            word, times = self.words[index], self.word_counts[index]
            done: list[int] = []
            place, last = 0, len(word) - 1
            while place <= last:
                if place == last or word[place] != left or word[place + 1] != right:
                    done.append(word[place])
                    place += 1
                    continue
                place += 2
                if done:
                    self._change(done[-1] << _SHIFT | left, -times, fresh)
                    self._change(done[-1] << _SHIFT | piece, times, fresh)
                    fresh_places.setdefault(done[-1] << _SHIFT | piece, []).append(index)
                if place <= last:
                    self._change(right << _SHIFT | word[place], -times, fresh)
                    self._change(piece << _SHIFT | word[place], times, fresh)
                    fresh_places.setdefault(piece << _SHIFT | word[place], []).append(index)
                done.append(piece)
            self.words[index] = done
        self._add(fresh, fresh_places)

    def _change(self, key: int, times: int, fresh: dict[int, int]) -> None:
        if key in self.counts:
            self.counts[key] += times
        else:
            fresh[key] = fresh.get(key, 0) + times
