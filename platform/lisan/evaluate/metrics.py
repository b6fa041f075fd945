"""Means, standard errors and bits per byte. Pure functions."""

import math
from collections.abc import Sequence

LN2 = math.log(2)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of the mean; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    average = mean(values)
    return math.sqrt(sum((value - average) ** 2 for value in values) / (len(values) - 1) / len(values))


def bits_per_byte(nll: float, num_bytes: int) -> float:
    """Return the NLL (nats) in bits per byte: the only loss that is comparable across vocabularies."""
    return nll / LN2 / num_bytes
