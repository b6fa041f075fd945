"""The reference pass of preference training."""

from pathlib import Path

import pytest
import torch
from tiny import ALONE

from lisan.core.artifact import Ref, Store
from lisan.core.storage import Location
from lisan.model.score import Batch, Scorer
from lisan.tokens.rows import RowReader
from lisan.train.reference import attach_reference, score_reference
from lisan.train.worker import ProcessGroup


@pytest.fixture
def reader(tiny_store: Store) -> RowReader:
    return RowReader(tiny_store.open(Ref.parse("tokens/preferences@v1")))


def test_every_document_of_every_row_is_scored_once(reader: RowReader, scorer: Scorer, tmp_path: Path) -> None:
    with ProcessGroup(ALONE):
        reference = score_reference(scorer, reader, 3, Location(str(tmp_path)), ALONE)
    lens = reader.read(range(len(reader))).doc_lens
    assert {row: len(logps) for row, logps in reference.items()} == {row: len(sizes) for row, sizes in enumerate(lens)}
    assert all(logp < 0 for logps in reference.values() for logp in logps)


@pytest.mark.parametrize("micro_rows", [1, 4, 1000])
def test_the_size_of_a_batch_changes_nothing(
    micro_rows: int, reader: RowReader, scorer: Scorer, tmp_path: Path
) -> None:
    with ProcessGroup(ALONE):
        one = score_reference(scorer, reader, 2, Location(str(tmp_path / "a")), ALONE)
        other = score_reference(scorer, reader, micro_rows, Location(str(tmp_path / "b")), ALONE)
    assert other == {row: pytest.approx(logps, abs=1e-4) for row, logps in one.items()}


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
    assert (again, model.asked) == (first, asked)
    assert asked > 0


def test_log_probabilities_are_attached_in_the_order_of_the_rows(reader: RowReader) -> None:
    reference = {row: tuple(float(10 * row + place) for place in range(2)) for row in range(len(reader))}
    rows = reader.read([4, 1])
    assert attach_reference(rows, reference).tolist() == [40, 41, 10, 11]
