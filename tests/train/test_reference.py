"""The reference pass of preference training."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import ALONE
from torch.distributed.tensor import DTensor

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.artifact import Ref, Store
from lisan.core.storage import Location
from lisan.data.rows import RowReader
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Batch, Scorer
from lisan.train.preference.reference import SCHEMA, attach_reference, make_reference, score_reference, score_rows


@pytest.fixture
def reader(tiny_store: Store) -> RowReader:
    return RowReader(tiny_store.open(Ref.parse("tokens/preferences@v1")))


def test_every_document_of_every_row_is_scored_once(reader: RowReader, scorer: Scorer, tmp_path: Path) -> None:
    with ProcessGroup(ALONE):
        reference = score_reference(scorer, reader, 3, Location(str(tmp_path)), ALONE)
    lens = reader.read(range(len(reader))).doc_lens
    assert [len(reference.of(row)) for row in range(len(reference))] == [len(sizes) for sizes in lens]
    assert (reference.logps < 0).all()


@pytest.mark.parametrize("micro_rows", [1, 4, 1000])
def test_the_size_of_a_batch_changes_nothing(
    micro_rows: int, reader: RowReader, scorer: Scorer, tmp_path: Path
) -> None:
    with ProcessGroup(ALONE):
        one = score_reference(scorer, reader, 2, Location(str(tmp_path / "a")), ALONE)
        other = score_reference(scorer, reader, micro_rows, Location(str(tmp_path / "b")), ALONE)
    assert np.array_equal(other.starts, one.starts)
    assert other.logps == pytest.approx(one.logps, abs=1e-4)


class Counting(torch.nn.Module):
    """Scores -1 a batch and counts how often it is asked."""

    asked = 0

    def forward(self, batch: Batch) -> torch.Tensor:
        self.asked += 1
        return torch.full(batch.labels.shape, -1.0)


def test_a_resumed_run_reads_what_the_first_computed(reader: RowReader, tmp_path: Path) -> None:
    model = Counting()
    with ProcessGroup(ALONE):
        first = score_reference(model, reader, 8, Location(str(tmp_path)), ALONE)  # type: ignore[arg-type]
        asked = model.asked
        again = score_reference(model, reader, 8, Location(str(tmp_path)), ALONE)  # type: ignore[arg-type]
    assert (again.logps.tolist(), model.asked) == (first.logps.tolist(), asked)
    assert asked > 0


def test_log_probabilities_are_attached_in_the_order_of_the_rows(reader: RowReader) -> None:
    table = pa.table({"row_id": range(6), "logps": [[10.0 * row, 10.0 * row + 1] for row in range(6)]}, SCHEMA)
    rows = reader.read([4, 1])
    assert attach_reference(rows, make_reference(table)).tolist() == [40, 41, 10, 11]


def test_scoring_gives_back_the_weights_that_it_gathered(reader: RowReader, scorer: Scorer) -> None:
    with ProcessGroup(ALONE):
        shard(scorer, "cpu", Precision.float32)
        score_rows(scorer, reader, [np.arange(2)], "cpu")
        assert all(isinstance(parameter, DTensor) for parameter in scorer.parameters())


@pytest.mark.parametrize("num_rows", [1, 11, 12])
def test_every_row_is_dealt_to_one_rank_and_all_compute_as_often(num_rows: int) -> None:
    dealt = [Worker(rank=rank, world_size=3).deal(num_rows, 2) for rank in range(3)]
    assert sorted(np.concatenate([rows[own] for batches in dealt for rows, own in batches])) == [*range(num_rows)]
    assert {tuple(len(rows) for rows, _ in batches) for batches in dealt} == {(2,) * -(-num_rows // 6)}
    assert max(rows.max() for batches in dealt for rows, _ in batches) == num_rows - 1
