"""KL estimate of KTO: log-ratios of policy and reference on replies to other prompts.

Ethayarajh et al. 2024, eq. 8: z0 = max(0, mean of log policy(y') - log reference(y')), no gradient. The tokens alone determine
the reply y' of a prompt, so that the reference scores it once. The mean is over all ranks and micro batches of a step, so that
the loss depends on neither. It costs one more forward pass a step.

The pairs of a row exchange replies in a circle, which keeps the length of the row. A row of one pair takes the replies of the
next row, cut at the end of its own row.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch

from lisan.cluster.worker import sum_over_ranks
from lisan.core.artifact import Artifact
from lisan.core.errors import DataError
from lisan.data.packing import PackedRow, lay_out
from lisan.data.rows import RowBatch, RowReader
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.tokenizer.labels import IGNORE_INDEX, Example
from lisan.train.preference.reference import Reference, attach_reference


class MismatchedReader(RowReader):
    """Reads every row with the replies of its pairs exchanged."""

    def __init__(self, artifact: Artifact) -> None:
        super().__init__(artifact)
        if len(self) == 1 and len(super().read([0]).doc_lens[0]) == 2:
            raise DataError(
                f"loss=kto exchanges replies between pairs and {artifact.ref} holds one pair; take loss=sigmoid, or more pairs"
            )

    def read(self, row_ids: Sequence[int] | npt.NDArray[np.int64]) -> RowBatch:
        next_ids = (np.asarray(row_ids, np.int64) + 1) % len(self)
        return mismatch(super().read(row_ids), super().read(next_ids))


def mismatch(rows: RowBatch, next_rows: RowBatch) -> RowBatch:
    """Give every prompt of a row the replies of the next pair."""
    context_length = rows.input_ids.shape[1]
    pairs = zip(_documents(rows), _documents(next_rows), strict=True)
    mixed = [_mismatch_row(documents, others, context_length) for documents, others in pairs]
    laid = [lay_out(row, context_length, pad_id=0) for row in mixed]
    return RowBatch(
        rows.row_ids,
        np.stack([ids for ids, _ in laid]),
        np.stack([labels for _, labels in laid]),
        tuple(tuple(row.doc_lens) for row in mixed),
    )


def _documents(rows: RowBatch) -> Iterator[list[tuple[Example, Example]]]:
    """Yield for each row the prompt and the reply of every document."""
    for ids, labels, lens in zip(rows.input_ids, rows.labels, rows.doc_lens, strict=True):
        ends = np.cumsum(lens)
        parts = zip(np.split(ids, ends)[:-1], np.split(labels, ends)[:-1], strict=True)
        yield [_divide(Example(*part)) for part in parts]


def _mismatch_row(
    documents: list[tuple[Example, Example]], others: list[tuple[Example, Example]], context_length: int
) -> PackedRow:
    prompts, replies = zip(*documents, strict=True)
    if len(documents) > 2:
        partners = replies[2:] + replies[:2]
    else:
        space = (context_length - sum(map(len, prompts))) // 2
        partners = tuple(Example(reply.input_ids[:space], reply.labels[:space]) for _, reply in others[:2])
    return PackedRow([_join(prompt, reply) for prompt, reply in zip(prompts, partners, strict=True)])


def _divide(document: Example) -> tuple[Example, Example]:
    """Divide a document where its labels begin."""
    ids, labels = document.input_ids, document.labels
    start = int((labels != IGNORE_INDEX).argmax())
    return Example(ids[:start], labels[:start]), Example(ids[start:], labels[start:])


def _join(prompt: Example, reply: Example) -> Example:
    return Example(np.concatenate([prompt.input_ids, reply.input_ids]), np.concatenate([prompt.labels, reply.labels]))


@torch.no_grad()
def estimate_kl(
    scorer: Scorer, parts: Sequence[RowBatch], reader: MismatchedReader, reference: Reference, device: str
) -> float:
    """Return z0 of a step, the same on all ranks; `parts` are the micro batches of this one."""
    was_training = scorer.training
    scorer.eval()  # dropout would use random numbers of the step's own passes
    sums = torch.zeros(2, dtype=torch.float64)
    for part in parts:
        rows = reader.read(part.row_ids)
        batch = collate(rows.input_ids, rows.labels, rows.doc_lens).to(device)
        gains = sum_by_document(scorer(batch), batch).double().cpu() - attach_reference(rows, reference)
        sums += torch.stack([gains.sum(), torch.tensor(float(len(gains)), dtype=torch.float64)])
    scorer.train(
        was_training
    )  # and no reshard: the step's own pass needs what is gathered, and its backward gives it back
    # A ratio: ranks that compute the same rows together count twice in both.
    gain, count = sum_over_ranks(sums).tolist()
    return float(torch.tensor(gain / count, dtype=torch.float64).clamp(min=0))  # a NaN stays one, for the guard to see
