"""Counts the rows that a run trained on, by source, and hashes their order.

With each checkpoint: rows, tokens, targets, epochs and unique tokens per source, and one hash of all row ids in order. Counts are
saved in and restored from checkpoints, so that steps lost with their process are not counted; they are exact over restarts and
for any number of workers.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist

from lisan.cluster.worker import Worker
from lisan.core.errors import DataError, TrainingError
from lisan.data.row_order import RowOrder
from lisan.data.rows import RowBatch

POSITION = "position"
ROWS_HASH = "rows_hash"
READ = "read"
COUNTED = ("rows", "tokens", "targets")
"Tokens are without padding; targets are the labels that the loss may count."


class DataLedger:
    """Counts the rows of this rank; `state_dict` sums over ranks."""

    def __init__(self, order: RowOrder, worker: Worker) -> None:
        self.order, self.worker = order, worker
        self.position = 0
        "Position in the row order: the whole resume state of the data."
        self.rows_hash = ""
        self._total = np.zeros((len(order.sources), len(COUNTED)), np.int64)
        self._begin()

    def _begin(self) -> None:
        self._own = np.zeros_like(self._total)
        self._row_ids: list[npt.NDArray[np.int64]] = []

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the counts of a checkpoint."""
        self.position = state[POSITION]
        read, self.rows_hash = state[READ], state[ROWS_HASH]
        self._total = np.array(
            [[read.get(source, {}).get(name, 0) for name in COUNTED] for source in self.order.sources], np.int64
        )

    def add(self, rows: RowBatch) -> None:
        """Count this rank's rows of one step."""
        counts = [np.ones(len(rows)), [sum(lens) for lens in rows.doc_lens], (rows.labels >= 0).sum(1)]
        source = self.order.source_of(rows.row_ids)
        np.add.at(self._own, source, np.array(counts, np.int64).T)
        # A view would keep its whole block in Ray's object store until the next checkpoint.
        self._row_ids.append(rows.row_ids.copy())

    def state_dict(self) -> dict[str, Any]:
        """Sum over ranks and return the counts for a checkpoint; a collective: every rank calls it.

        Raises TrainingError when the rows of the ranks do not follow each other.
        """
        self._total += self.worker.sum_over_data(torch.from_numpy(self._own)).numpy().astype(np.int64)
        for row_ids in self._steps():
            self.position = self._follow(row_ids)
            self.rows_hash = chain_hash(self.rows_hash, row_ids)
        self._begin()
        return {POSITION: self.position, ROWS_HASH: self.rows_hash, READ: self._read()}

    def _follow(self, row_ids: npt.NDArray[np.int64]) -> int:
        try:
            return self.order.follow(self.position, row_ids)
        except DataError as error:
            raise TrainingError(f"the ranks together {error}; the stream is out of order") from error

    def _steps(self) -> npt.NDArray[np.int64]:
        """Return the row ids [S, R] of every step since the last `state_dict`, in the order of the ranks."""
        own = torch.from_numpy(np.array(self._row_ids, np.int64))
        shares = [torch.empty_like(own) for _ in range(self.worker.world_size)]
        dist.all_gather(shares, own)
        return torch.cat(shares[:: self.worker.tensor_parallel_size], 1).numpy()

    def _read(self) -> dict[str, dict[str, float]]:
        read = {}
        for source, counts in zip(self.order.sources, self._total.tolist(), strict=True):
            rows, tokens, _ = counts
            if rows:
                # A row repeats only after all others of its source: the unique tokens are all tokens read, or all of the source.
                unique = min(tokens, self.order.num_tokens[source])
                epochs = rows / self.order.num_rows[source]
                read[source] = {**dict(zip(COUNTED, counts, strict=True)), "epochs": epochs, "unique_tokens": unique}
        return read


def chain_hash(before: str, row_ids: npt.NDArray[np.int64]) -> str:
    """Return the hash of a run after the rows of one more step.

    It depends on every row id so far and their order, and neither on the number of workers nor on when checkpoints were
    made: two runs with the same hash have read the same rows in the same order.
    """
    step = np.ascontiguousarray(row_ids, "<i8").tobytes()
    return hashlib.blake2b(bytes.fromhex(before) + step, digest_size=16).hexdigest()


def flatten_read(facts: Mapping[str, Any]) -> dict[str, float]:
    """Return the counts as metrics: `read/tokens/<source>`."""
    return {f"read/{name}/{source}": value for source, read in facts[READ].items() for name, value in read.items()}


def realised(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts of a finished model's training rows."""
    read = facts[READ]
    return {
        "tokens_seen": sum(counts["tokens"] for counts in read.values()),
        "mix": {source: counts["tokens"] for source, counts in read.items()},
        "epochs": {source: counts["epochs"] for source, counts in read.items()},
        READ: read,
        ROWS_HASH: facts[ROWS_HASH],
    }
