"""Relates new pieces to old ones: old pieces with the same neighbours in a text, ids of the same bytes in a second tokenizer.

In: a text as ids of an expanded tokenizer, or two tokenizers. Out: for new ids, old ids with weights that sum to 1; for our
ids, theirs. Always: a piece that the text never shows is nobody's neighbour. `neighbours.json` lies beside the tokenizer;
training reads it for `model.new_rows.method=similarity`.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from lisan.core.errors import DataError
from lisan.tokenizer.pieces import piece_bytes
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer

NEIGHBOURS = "neighbours.json"
WINDOW = 5
"Tokens to either side that are company; the nearer the more (1 / distance)."
DIMENSIONS = 100
"Of the space in which company is compared."
SMOOTHING = 0.75
"Exponent on the counts of contexts: rare contexts would look informative (Levy et al. 2015)."
CHUNK_TOKENS = 500_000

Neighbours = dict[int, tuple[tuple[int, float], ...]]
Vectors = npt.NDArray[np.float64]


def write_neighbours(folder: Path, texts: Iterable[str], num: int) -> dict[str, int]:
    """Learn up to `num` neighbours of every new piece of a tokenizer folder on texts, write them there, return counts."""
    expansion = load_expansion(folder)
    encode = load_tokenizer(folder).backend_tokenizer.encode_batch_fast
    left = iter(texts)
    groups = iter(lambda: list(islice(left, 512)), [])
    encoded = (encoding.ids for group in groups for encoding in encode(group, add_special_tokens=False))
    found = find_neighbours(encoded, range(expansion.base_size), expansion.new_ids, num)
    if not found:
        raise DataError(
            f"no new piece of {folder} keeps company with an old one in the text; give text in both languages, or another method"
        )
    (folder / NEIGHBOURS).write_text(json.dumps({"hash": expansion.hash, "neighbours": found}))
    return {"with_neighbours": len(found), "without_neighbours": len(expansion.new_ids) - len(found)}


def read_neighbours(folder: Path | str, tokenizer_hash: str) -> Neighbours:
    """Return the neighbours that lie beside a tokenizer; DataError when there are none, or those of another one."""
    place = Path(folder) / NEIGHBOURS
    raw = json.loads(place.read_bytes()) if place.exists() else None
    if raw is None or raw["hash"] != tokenizer_hash:
        lack = f"holds no {NEIGHBOURS}" if raw is None else f"holds the {NEIGHBOURS} of another tokenizer"
        raise DataError(
            f"model.new_rows.method=similarity, but {folder} {lack}; expand the tokenizer with neighbours > 0, or use method=mean"
        )
    return {int(index): tuple((old, weight) for old, weight in pairs) for index, pairs in raw["neighbours"].items()}


def find_neighbours(
    texts: Iterable[Sequence[int]], old_ids: Iterable[int], new_ids: Iterable[int], num: int
) -> Neighbours:
    """Return for each new id that has any its nearest old ids, in a space of PPMI vectors reduced by SVD.

    Weights are the sparsemax of the cosines of the `num` nearest, as in FOCUS (Dobler and de Melo 2023, 2305.14481); only
    positive cosines count.
    """
    counts = count_company(texts)
    seen = counts.sum(1) > 0
    old, new = (np.array([i for i in ids if i < len(seen) and seen[i]], np.int64) for ids in (old_ids, new_ids))
    if not (old.size and new.size):
        return {}
    vectors = embed(counts)
    found: Neighbours = {}
    candidates = vectors[old].T
    for index in new:
        cosines = vectors[index] @ candidates
        nearest = np.argsort(-cosines, kind="stable")[:num]
        nearest = nearest[cosines[nearest] > 0]
        if nearest.size:
            weights = sparsemax(cosines[nearest])
            pairs = zip(old[nearest].tolist(), weights.tolist(), strict=True)
            found[int(index)] = tuple((piece, round(weight, 6)) for piece, weight in pairs if weight > 0)
    return found


def count_company(texts: Iterable[Sequence[int]]) -> sparse.csr_array:
    """Count how often two ids stand within WINDOW of each other, weighted by 1 / distance; symmetric [ids, ids]."""
    total = sparse.csr_array((1, 1))
    for ids in _join(texts):
        size = max(int(ids.max(initial=0)) + 1, total.shape[0])
        total.resize((size, size))
        for distance in range(1, WINDOW + 1):
            left, right = ids[:-distance], ids[distance:]
            is_pair = (left >= 0) & (right >= 0)
            pairs = (left[is_pair], right[is_pair])
            total = total + sparse.coo_array((np.full(len(pairs[0]), 1 / distance), pairs), shape=(size, size)).tocsr()
    return sparse.csr_array(total + total.T)


def _join(texts: Iterable[Sequence[int]]) -> Iterator[npt.NDArray[np.int64]]:
    """Lay texts end to end, with room between them, in arrays of about CHUNK_TOKENS."""
    parts: list[Sequence[int]] = []
    gap, size = [-1] * WINDOW, 0
    for text in texts:
        parts += [text, gap]
        size += len(text)
        if size >= CHUNK_TOKENS:
            yield np.fromiter(chain.from_iterable(parts), np.int64)
            parts, size = [], 0
    yield np.fromiter(chain.from_iterable(parts), np.int64)


def embed(counts: sparse.csr_array) -> Vectors:
    """Return unit vectors [ids, dimensions] of a symmetric table of counts: positive PMI, then a truncated SVD.

    An id without company has a vector of zeros.
    """
    from scipy.sparse.linalg import svds

    pairs = counts.tocoo()
    often = counts.sum(1)
    context = often**SMOOTHING
    context /= context.sum()
    pmi = np.log(pairs.data) - np.log(often[pairs.row]) - np.log(context[pairs.col])
    is_more = pmi > 0
    table = sparse.csr_array((pmi[is_more], (pairs.row[is_more], pairs.col[is_more])), shape=counts.shape)
    num = min(DIMENSIONS, min(table.shape) - 1)
    left, values, _ = svds(table, k=num, v0=np.ones(table.shape[0]))
    vectors = left * np.sqrt(np.maximum(values, 0))
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-9), np.float64)


def sparsemax(scores: Vectors) -> Vectors:
    """Project descending scores onto the simplex (Martins and Astudillo 2016): like softmax, but far ones get nothing.

    >>> sparsemax(np.array([0.9, 0.7, -0.5])).round(3).tolist()
    [0.6, 0.4, 0.0]
    """
    sums = np.cumsum(scores)
    places = np.arange(1, len(scores) + 1)
    support = int(places[1 + places * scores > sums][-1])
    return np.asarray(np.maximum(scores - (sums[support - 1] - 1) / support, 0), np.float64)


def match_pieces(ours: Any, theirs: Any) -> dict[int, int]:
    """Return for each of our ids the id that stands for the same bytes in another tokenizer, where it has one.

    Of two such ids the higher counts: SentencePiece lists bytes before characters.
    """
    known = {piece: index for index, piece in enumerate(piece_bytes(theirs)) if piece}
    return {index: known[piece] for index, piece in enumerate(piece_bytes(ours)) if piece in known}
