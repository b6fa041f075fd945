"""chrF, the similarity of two texts by their characters."""

from collections import Counter
from statistics import fmean

CHRF_ORDER, CHRF_BETA = 6, 2


def chrf(text: str, reference: str) -> float:
    """Return how much of each other's characters two texts have, 0 to 100: sentence chrF (Popović 2015).

    The F score that values recall twice, of the means of precision and recall over n-grams of 1 to 6 characters, white space
    left out; the same numbers as sacrebleu's.
    """
    counts = [(_char_ngrams(text, n), _char_ngrams(reference, n)) for n in range(1, CHRF_ORDER + 1)]
    shared = [((ours & theirs).total(), ours.total(), theirs.total()) for ours, theirs in counts if ours and theirs]
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
