"""Checks on two small documents in one row that the attention of a real model keeps documents apart.

Runs small forward passes without gradients or dropout, the same on every rank, because sharded weights are gathered in step.
"""

import numpy as np
import torch

from lisan.core.errors import TrainingError
from lisan.model.score import Scorer, collate, reshard

DOCUMENT = 8
"Tokens of each document."
MOVED = {torch.float32: 1e-3, torch.bfloat16: 0.1}
"""Largest mean change of a log-probability from moving a document within its row, by precision: kernels may sum over other
blocks of keys. Measured: 0 on a CPU, more than 0.5 with learned positions that do not restart."""


@torch.no_grad()
def check_documents_apart(scorer: Scorer, device: str, dtype: torch.dtype) -> None:
    """Change the first document and compare the second; swap the documents and compare both.

    Then give the first the positions of the end of a long document, which must not change the second either.

    TrainingError when the second changes by one bit, or when a document's score depends on its position in the row.
    """
    was_training = scorer.training
    scorer.eval()
    num_pieces = scorer.model.get_input_embeddings().weight.shape[0]
    first, second = _documents(num_pieces)
    other = (first + 1) % num_pieces
    before, after = (
        _score(scorer, np.stack([np.r_[one, second], np.r_[second, one]]), device) for one in (first, other)
    )
    beside_long = _score(scorer, np.stack([np.r_[first, second]] * 2), device, _far_positions(scorer))
    scorer.train(was_training)
    reshard(scorer)
    attention = f"the attention {scorer.model.config._attn_implementation} of {type(scorer.model).__name__}"
    if not torch.allclose(before[0, DOCUMENT:], after[0, DOCUMENT:], rtol=0, atol=0, equal_nan=True):
        leak = float((before[0, DOCUMENT:] - after[0, DOCUMENT:]).abs().max())
        raise TrainingError(
            f"documents of one row see each other: other tokens in the first moved the second by {leak:.2g} nat; "
            f"{attention} does not take the mask of packed rows, choose another one"
        )
    if not torch.allclose(before[0, DOCUMENT:], beside_long[0, DOCUMENT:], rtol=0, atol=0, equal_nan=True):
        leak = float((before[0, DOCUMENT:] - beside_long[0, DOCUMENT:]).abs().max())
        raise TrainingError(
            f"a long document moves the scores of a short one beside it by {leak:.2g} nat: the rotary positions of "
            f"{type(scorer.model).__name__} depend on the longest document of a batch; choose another model class"
        )
    moved = float((before[0] - before[1].roll(DOCUMENT)).abs().mean())
    if moved > MOVED[dtype]:
        raise TrainingError(
            f"a document scores {moved:.2g} nat per token another way at another place of its row, {MOVED[dtype]:g} is "
            f"rounding; positions do not restart with each document in {attention}, choose another model class"
        )


def _documents(num_pieces: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """Return two documents [2, DOCUMENT] of different pieces spread over the vocabulary."""
    step = max(1, num_pieces // (2 * DOCUMENT + 1))
    return (np.arange(1, 2 * DOCUMENT + 1) * step % num_pieces).reshape(DOCUMENT, 2).T


def _far_positions(scorer: Scorer) -> int:
    """Return the shift of the first document's positions that makes it end at the model's largest position."""
    longest = getattr(scorer.model.config.get_text_config(), "max_position_embeddings", None) or DOCUMENT
    return max(0, int(longest) - DOCUMENT)


def _score(
    scorer: Scorer, ids: np.ndarray[tuple[int, ...], np.dtype[np.int64]], device: str, moved_by: int = 0
) -> torch.Tensor:
    labels = ids.copy()
    labels[:, ::DOCUMENT] = -100
    batch = collate(ids, labels, [[DOCUMENT, DOCUMENT]] * len(ids))
    batch.positions[:, :DOCUMENT] += moved_by
    logps: torch.Tensor = scorer(batch.to(device))
    return logps
