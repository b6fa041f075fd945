"""Continue byte-pair encoding where a base tokenizer stopped: pure Python on word counts, no tokenizer object.

In: distinct words as ids of the base, how often each occurs, and the spelling of every id. Out: merges in order, each making one
new piece, and the tokens that each saves. Always: every piece is new and every merge's parts exist before it, so that appended
after the base's own merges they are applied in exactly this order, and only to text that holds a character of the target scripts.
"""

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import AnyStr

Merge = tuple[int, int]
_SHIFT = 32
_MASK = (1 << _SHIFT) - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Learned:
    """New pieces in the order of their ids: characters that the base lacks, then merges by their savings."""

    characters: tuple[str, ...] = ()
    merges: tuple[Merge, ...]
    savings: tuple[int, ...]
    "Tokens of the sample that each merge saves."
    num_words: int
    "Whitespace words of the sample that hold a character of the target."
    base_tokens: int
    "Tokens of the base for the target's characters in these words."
    start_tokens: int
    "The same with the characters and without a merge."

    def __len__(self) -> int:
        return len(self.characters) + len(self.merges)

    def first(self, num_pieces: int) -> "Learned":
        """Return what learning would have stopped at; never fewer than the characters."""
        num_merges = max(0, num_pieces - len(self.characters))
        return replace(self, merges=self.merges[:num_merges], savings=self.savings[:num_merges])

    def fertilities(self) -> list[float]:
        """Return tokens per word on the sample after the characters and after each merge."""
        left = accumulate(self.savings, lambda tokens, saved: tokens - saved, initial=self.start_tokens)
        return [tokens / max(1, self.num_words) for tokens in left]


def learn_merges(
    words: list[list[int]],
    counts: Sequence[int],
    pieces: Sequence[AnyStr],
    num_merges: int,
    owns: Callable[[AnyStr], bool],
    min_count: int = 2,
) -> tuple[list[Merge], list[int]]:
    """Merge the most frequent pair again and again; ids of new pieces go on from `len(pieces)`.

    Returns the merges and how many tokens each saves: its count, less what overlaps in runs such as `aaa`. `words` is
    consumed (merged in place). Ties go to the pair with the lower ids, so that the result depends on nothing but the
    input. Stops early when no pair of the target scripts occurs `min_count` times.
    """
    known = list(pieces)
    taken = set(known)
    table = _PairTable(words, counts, min_count, lambda left, right: owns(known[left] + known[right]))
    merges: list[Merge] = []
    savings: list[int] = []
    while len(merges) < num_merges and (pair := table.pop()) is not None:
        piece = known[pair[0]] + known[pair[1]]
        if piece in taken:
            # Only a piece that the base holds but its merges never reach: waking it would set off merges of its own.
            continue
        known.append(piece)
        taken.add(piece)
        savings.append(table.merge(pair, len(known) - 1))
        merges.append(pair)
    return merges, savings


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

    def merge(self, pair: Merge, piece: int) -> int:
        """Replace the pair by `piece` in every word that holds it, and count the pairs this makes and unmakes.

        Returns how many tokens of the sample that saves.
        """
        left, right = pair
        saved = 0
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
            saved += (len(word) - len(done)) * times
            self.words[index] = done
        self._add(fresh, fresh_places)
        return saved

    def _change(self, key: int, times: int, fresh: dict[int, int]) -> None:
        if key in self.counts:
            self.counts[key] += times
        else:
            fresh[key] = fresh.get(key, 0) + times
