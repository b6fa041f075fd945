"""Chooses the number of new pieces from the curve of their savings.

In: a base, texts, the target's characters, a `VocabularySize`. Out: the learned pieces up to that size. Always: the
curve is a by-product of learning, as a merge saves exactly as many tokens of the sample as there are places it is applied
to. (A Unigram model cuts the same pieces by their scores: its last point differs by about a hundredth.)
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from lisan.core.errors import DataError
from lisan.tokenizer.expand.config import VocabularySize
from lisan.tokenizer.expand.merges import Learned, learn_merges
from lisan.tokenizer.expand.tokenizer_families import TokenizerFamily
from lisan.tokenizer.script import Script
from lisan.tokenizer.tokenizer_json import Definition, tokenize_words

KNEE_MULTIPLE = 256
CURVE_POINTS = 50


def count_target_words(texts: Iterable[str], script: Script) -> int:
    """Count whitespace words that hold a character of the target."""
    head = re.compile(rf"(?<!\S)[^\s{script.character_class[1:]}*{script.character_class}")
    return sum(len(head.findall(text)) for text in texts)


def learn_pieces(
    family: TokenizerFamily,
    definition: Definition,
    words: Counter[str],
    num_words: int,
    script: Script,
    size: VocabularySize,
) -> Learned:
    """Make pieces of the characters that the base lacks, most frequent first, and then of the most frequent pairs."""
    lacking = family.missing_characters(definition, words, script)
    frequent = [
        c for c, count in sorted(lacking.items(), key=lambda item: (-item[1], item[0])) if count >= size.min_count
    ]
    characters = tuple(frequent[: size.max_learned])
    ready = family.with_characters(definition, characters)
    counts = list(words.values())
    symbols = tokenize_words(ready, words)
    start = _count_tokens(symbols, counts)
    merges, savings = learn_merges(
        symbols,
        counts,
        family.pieces_by_id(ready),
        size.max_learned - len(characters),
        lambda piece: family.owns(script, piece),
        size.min_count,
    )
    return Learned(
        characters=characters,
        merges=tuple(merges),
        savings=tuple(savings),
        num_words=num_words,
        base_tokens=_count_tokens(tokenize_words(definition, words), counts) if characters else start,
        start_tokens=start,
    )


def _count_tokens(symbols: Sequence[Sequence[int]], counts: Sequence[int]) -> int:
    return sum(len(word) * times for word, times in zip(symbols, counts, strict=True))


def cut_to_size(learned: Learned, size: VocabularySize) -> Learned:
    """Keep the pieces up to where the size ends; DataError when the sample does not lead there."""
    if size.target_fertility is not None:
        return learned.first(_reach(learned, size.target_fertility, size))
    if size.knee is not None:
        return learned.first(_find_knee(learned, size.knee, size))
    return learned


def _reach(learned: Learned, wanted: float, size: VocabularySize) -> int:
    """Return how many pieces bring the sample down to that many tokens per word."""
    before = learned.base_tokens / max(1, learned.num_words)
    if before <= wanted:
        raise DataError(
            f"target_fertility is {wanted:g} but the base takes {before:.2f} tokens per word; set a lower one"
        )
    curve = learned.fertilities()
    if curve[-1] > wanted:
        raise DataError(
            f"target_fertility is {wanted:g} but {len(learned):,} pieces reach {curve[-1]:.2f}; set a higher one, or "
            f"{_raise_what(learned, size)}"
        )
    return len(learned.characters) + next(num for num, fertility in enumerate(curve) if fertility <= wanted)


def _find_knee(learned: Learned, knee: float, size: VocabularySize) -> int:
    """Return the number of pieces that each save at least `knee` tokens in a million words, to the nearest 256.

    Kneedle (Satopaa et al., 2011) was tried and answers another question: on the Arabic curve of Mistral's tokenizer it finds
    580, 1,039 and 1,869 pieces when 4k, 8k and 16k are learned, and over log pieces 184 on OpenLLaMA and 2,770 on Mistral. What
    a piece must save is a price that can be named, and 30 means 9.1k, 9.1k and 7.4k pieces on OpenLLaMA, Mistral and GPT-NeoX.
    """
    least = knee * learned.num_words / 1e6
    worthy = sum(saved >= least for saved in learned.savings)
    if worthy == len(learned.merges):
        last = 1e6 * min(learned.savings, default=0) / max(1, learned.num_words)
        raise DataError(
            f"knee is {knee:g} but piece {len(learned):,} still saves {last:.3g} tokens in a million words; set a higher one, "
            f"or {_raise_what(learned, size)}"
        )
    nearest = round((len(learned.characters) + worthy) / KNEE_MULTIPLE) * KNEE_MULTIPLE
    return min(max(nearest, KNEE_MULTIPLE), len(learned))


def _raise_what(learned: Learned, size: VocabularySize) -> str:
    if len(learned) == size.max_learned:
        return f"raise max_pieces={size.max_pieces:,}"
    return "learn on more text"


def learning_curve(learned: Learned) -> list[list[float]]:
    """Return about fifty points (pieces, tokens per word on the sample), closer together where the curve bends."""
    curve, first = learned.fertilities(), len(learned.characters)
    places = sorted(
        {0, *np.geomspace(1, max(1, len(curve) - 1), CURVE_POINTS).astype(int).tolist()} & set(range(len(curve)))
    )
    start = [[0, round(learned.base_tokens / max(1, learned.num_words), 4)]] if first else []
    return start + [[first + place, round(curve[place], 4)] for place in places]
