"""Finds exact duplicates among documents by match key.

The longest document of a key stays, of equally long ones that with the lowest id. The rule can be applied to subsets first and
then to the survivors with the same result, so it can run on hash partitions.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xxhash

from lisan.corpus.clean.normalise import match_key

KEYS = pa.schema(
    [
        ("key_high", pa.uint64()),
        ("key_low", pa.uint64()),
        ("length", pa.int64()),
        ("id", pa.string()),
        ("task", pa.int32()),
        ("row", pa.int64()),
    ]
)
"One row per document: all that is exchanged between machines to find duplicates."
REMOVALS = pa.schema([("task", pa.int32()), ("row", pa.int64())])


def document_key(text: str) -> tuple[int, int]:
    """Return xxh3-128 of the match key as two halves; a text of symbols only is its own key."""
    value = xxhash.xxh3_128_intdigest((match_key(text) or text).encode())
    return value >> 64, value & 0xFFFFFFFFFFFFFFFF


def _removed(keys: pa.Table) -> tuple[pa.Array, np.ndarray]:
    """Return the rows in order of key and preference, and which of them follow one with their own key."""
    order = pc.sort_indices(
        keys,
        sort_keys=[
            ("key_high", "ascending"),
            ("key_low", "ascending"),
            ("length", "descending"),
            ("id", "ascending"),
        ],
    )
    high, low = (keys[name].to_numpy()[order.to_numpy()] for name in ("key_high", "key_low"))
    return order, np.concatenate([[False], (high[1:] == high[:-1]) & (low[1:] == low[:-1])])[: len(high)]


def find_removals(keys: pa.Table) -> pa.Table:
    """Return (task, row) of every document to remove."""
    order, removed = _removed(keys)
    return keys.select(REMOVALS.names).take(order.filter(pa.array(removed)))


def keep_survivors(keys: pa.Table) -> pa.Table:
    """Return the rows that stay; doing this within tasks first bounds a key's rows by the number of tasks."""
    order, removed = _removed(keys)
    return keys.take(order.filter(pa.array(~removed)))
