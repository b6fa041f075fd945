"""Named random streams: an integer seed and labels give an independent stream, equal on every machine."""

import hashlib
import random


def derive_seed(seed: int, *labels: str | int) -> int:
    """Return a 63-bit seed for the stream called `labels`, independent of Python's salted `hash`."""
    key = "\x1f".join([str(seed), *map(str, labels)]).encode()
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big") >> 1


def stream(seed: int, *labels: str | int) -> random.Random:
    """Return a `random.Random` for the stream called `labels`."""
    return random.Random(derive_seed(seed, *labels))
