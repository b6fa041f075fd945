"""Text drawn from documents, the same whatever the order in which they are read.

In: documents in any order. Out: texts up to a number of bytes. `expand_tokenizer` learns and measures on them.
"""

import heapq
from collections.abc import Iterable

from lisan.core.seed import derive_seed
from lisan.records.records import Document


def sample_texts(documents: Iterable[Document], max_bytes: int, seed: int) -> list[str]:
    """Draw documents at random up to `max_bytes`, in one pass: those with the lowest seeded hash of their id are kept.

    The choice does not depend on the order in which the corpus is read. A single document over the limit is cut.
    """
    kept: list[tuple[int, str, str]] = []
    size = 0
    for document in documents:
        text = document.text.encode()[:max_bytes].decode("utf-8", "ignore")
        heapq.heappush(kept, (-derive_seed(seed, "sample", document.source, document.id), document.id, text))
        size += len(text.encode())
        while size > max_bytes:
            size -= len(heapq.heappop(kept)[2].encode())
    return [text for _, _, text in sorted(kept, reverse=True) if text]
