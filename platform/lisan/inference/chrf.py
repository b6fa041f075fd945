"""chrF: character n-gram similarity of two texts."""

from collections import Counter
from statistics import fmean

CHRF_ORDER, CHRF_BETA = 6, 2


def chrf(text: str, reference: str) -> float:
    """Return sentence chrF (Popović 2015), 0 to 100.

    F2 score (recall counts twice) of mean precision and mean recall over n-grams of 1 to 6 characters, without white space.
    Equals sacrebleu's numbers.
    """
    counts = [(_char_ngrams(text, n), _char_ngrams(reference, n)) for n in range(1, CHRF_ORDER + 1)]
    shared = [((first & second).total(), first.total(), second.total()) for first, second in counts if first and second]
    if not shared:
        return 0.0
    precision = fmean([match / ours for match, ours, _ in shared])
    recall = fmean([match / theirs for match, _, theirs in shared])
    if not precision + recall:
        return 0.0
    return 100 * (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _char_ngrams(text: str, n: int) -> Counter[str]:
    joined = "".join(text.split())
    return Counter(joined[start : start + n] for start in range(len(joined) - n + 1))
