"""What a run says it has read is what it has read."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import ALONE, train_alone, train_config

from lisan.core.artifact import Ref, Store
from lisan.core.errors import TrainingError
from lisan.core.storage import Location
from lisan.data.config import MixConfig, MixStageConfig
from lisan.data.mix import make_plan
from lisan.data.row_order import open_order
from lisan.data.rows import RowReader
from lisan.train.checkpoint import retention
from lisan.train.metrics.data_ledger import DataLedger, chain_hash

MIX = MixConfig(
    weights={"ar_text": 0.75, "en_text": 0.25},
    stages={"anneal": MixStageConfig(from_step=4, weights={"ar_text": 1.0})},
    max_epochs=100,
)
NUM_STEPS = 12


class KilledError(Exception):
    """Stands for a process that dies."""


def books(folder: Path) -> dict[str, Any]:
    """Return what the last checkpoint of a run says."""
    latest = retention.find_latest(Location(str(folder)) / "checkpoints")
    assert latest is not None
    return {name: latest.facts[name] for name in ("step", "read", "rows_hash")}


@pytest.fixture
def reader(tiny_store: Store) -> RowReader:
    return RowReader(tiny_store.open(Ref.parse("tokens/documents@v1")))


def config(store: Store, **changes: Any) -> Any:
    return train_config(store, mix=MIX, loop={"num_steps": NUM_STEPS, "checkpoint_every": 5, **changes})


def test_the_books_hold_what_the_plan_names(tiny_store: Store, reader: RowReader, tmp_path: Path) -> None:
    train_alone(tiny_store, config(tiny_store), tmp_path)
    row_ids = make_plan(reader.num_rows, MIX, NUM_STEPS, 8).rows(0, 8 * NUM_STEPS)
    found = books(tmp_path)
    assert set(found["read"]) == {"ar_text", "en_text"}
    for index, (source, read) in enumerate(found["read"].items()):
        own = row_ids[reader.source_of(row_ids) == index]
        rows, once = reader.read(own), reader.read(np.unique(own))
        assert read["rows"] == len(own)
        assert read["tokens"] == sum(map(sum, rows.doc_lens))
        assert read["targets"] == int((rows.labels >= 0).sum())
        assert read["epochs"] == len(own) / reader.num_rows[source]
        assert read["unique_tokens"] == sum(map(sum, once.doc_lens))
    assert found["read"]["ar_text"]["epochs"] > 1 > found["read"]["en_text"]["epochs"]


def test_the_tracker_gets_the_books_with_every_checkpoint(tiny_store: Store, tmp_path: Path) -> None:
    run = train_alone(tiny_store, config(tiny_store), tmp_path)
    with_books = {step for step, metrics in run.steps.items() if "read/tokens/ar_text" in metrics}
    assert with_books == {5, 10, 12} == set(run.checkpoints)
    last = books(tmp_path)["read"]
    assert {name: value for name, value in run.steps[12].items() if name.startswith("read/")} == {
        f"read/{name}/{source}": value for source, read in last.items() for name, value in read.items()
    }


@pytest.mark.parametrize("killed_at", [1, 6, 11])
def test_steps_that_died_with_their_process_are_not_counted(
    killed_at: int, tiny_store: Store, reader: RowReader, tmp_path: Path
) -> None:
    train_alone(tiny_store, config(tiny_store), tmp_path / "whole")
    plan = make_plan(reader.num_rows, MIX, NUM_STEPS, 8)

    def dies() -> Any:
        yield from (reader.read(plan.rows(8 * step, 8 * step + 8)) for step in range(killed_at))
        raise KilledError

    with pytest.raises(KilledError):
        train_alone(tiny_store, config(tiny_store), tmp_path / "cut", replace(ALONE, stream=dies))
    train_alone(tiny_store, config(tiny_store), tmp_path / "cut")
    assert books(tmp_path / "cut") == books(tmp_path / "whole")


def test_the_hash_is_the_same_wherever_checkpoints_were_made(tiny_store: Store, tmp_path: Path) -> None:
    for every in (1, 5, 100):
        train_alone(tiny_store, config(tiny_store, checkpoint_every=every), tmp_path / str(every))
    assert books(tmp_path / "1") == books(tmp_path / "5") == books(tmp_path / "100")


def test_the_hash_is_of_all_row_ids_in_order(tiny_store: Store, reader: RowReader, tmp_path: Path) -> None:
    train_alone(tiny_store, config(tiny_store), tmp_path)
    plan = make_plan(reader.num_rows, MIX, NUM_STEPS, 8)
    digest = b""
    for step in range(NUM_STEPS):
        ids = plan.rows(8 * step, 8 * step + 8).astype("<i8").tobytes()
        digest = hashlib.blake2b(digest + ids, digest_size=16).digest()
    assert books(tmp_path)["rows_hash"] == digest.hex()


def test_two_rows_that_change_places_change_the_hash() -> None:
    one, other = (chain_hash("", np.array(ids)) for ids in ([1, 2, 3], [1, 3, 2]))
    assert one != other
    assert chain_hash(one, np.array([4])) != chain_hash(other, np.array([4]))


def test_a_checkpoint_without_books_is_refused(tiny_store: Store, tmp_path: Path) -> None:
    train_alone(tiny_store, config(tiny_store, num_steps=5), tmp_path)
    mark = Location(str(tmp_path)) / "checkpoints" / "step_00000005" / retention.MARK
    mark.write_json({name: value for name, value in mark.read_json().items() if name not in ("read", "position")})
    with pytest.raises(TrainingError, match="step_00000005 has no position; delete it"):
        train_alone(tiny_store, config(tiny_store), tmp_path)


def test_the_books_keep_no_row_in_memory(tiny_store: Store, reader: RowReader) -> None:
    """Rows that Ray Data sends are views of a block in the object store, which stays for as long as one of them does."""
    ledger = DataLedger(open_order(tiny_store.open(Ref.parse("tokens/documents@v1")), MixConfig(), 1, 8), ALONE)
    rows = reader.read(range(8))
    ledger.add(rows)
    assert rows.row_ids.base is not None
    assert not any(np.shares_memory(kept, rows.row_ids) for kept in ledger._row_ids)
