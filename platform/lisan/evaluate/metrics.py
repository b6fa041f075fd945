"""Numbers from per-item results, each with its standard error. Pure functions."""

import math
from collections import Counter
from collections.abc import Sequence

LN2 = math.log(2)
CHRF_ORDER, CHRF_BETA = 6, 2


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(sum((value - centre) ** 2 for value in values) / (len(values) - 1) / len(values))


def bits_per_byte(nll: float, num_bytes: int) -> float:
    """Return nats over bytes as bits: the only loss that compares models of different vocabularies."""
    return nll / LN2 / num_bytes


def chrf(text: str, reference: str) -> float:
    """Return how much of each other's characters two texts have, 0 to 100: sentence chrF (Popović 2015).

    The F score that values recall twice, of the means of precision and recall over n-grams of 1 to 6 characters, white space
    left out; the same numbers as sacrebleu's.
    """
    counts = [(_char_ngrams(text, n), _char_ngrams(reference, n)) for n in range(1, CHRF_ORDER + 1)]
    shared = [((ours & theirs).total(), ours.total(), theirs.total()) for ours, theirs in counts if ours and theirs]
    if not shared:
        return 0.0
    precision = mean([match / ours for match, ours, _ in shared])
    recall = mean([match / theirs for match, _, theirs in shared])
    if not precision + recall:
        return 0.0
    return 100 * (1 + CHRF_BETA**2) * precision * recall / (CHRF_BETA**2 * precision + recall)


def _char_ngrams(text: str, n: int) -> Counter[str]:
    joined = "".join(text.split())
    return Counter(joined[start : start + n] for start in range(len(joined) - n + 1))
