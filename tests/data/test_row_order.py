"""The order of a run's rows: stored or made, it is the same for any number of workers and from any position on."""

from itertools import islice
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from tiny import encode, train_alone, train_config, weights

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.data import segments
from lisan.data.config import MixConfig, MixStageConfig, Overflow, PackingConfig
from lisan.data.row_order import MadeRows, RowOrder, StoredRows, open_order
from lisan.data.rows import RowBatch
from lisan.records.kinds import RecordKind

STEP_ROWS = 8
MIX = MixConfig(weights={"ar_text": 0.75, "en_text": 0.25}, max_epochs=100, seed=3)


@pytest.fixture(autouse=True)
def _small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "SEGMENT_BLOCKS", 10)


@pytest.fixture
def store(tiny_store: Store, tmp_path: Path) -> Store:
    for name in ("corpus", "tokenizer"):
        copytree(Path(tiny_store.root.root) / name, tmp_path / name)
    return Store(str(tmp_path))


@pytest.fixture(params=["stored", "made"])
def tokens(request: pytest.FixtureRequest, store: Store) -> Artifact:
    if request.param == "stored":
        return encode(store, RecordKind.documents)
    return encode(store, RecordKind.documents, store_rows=False, block_records=4)


@pytest.fixture
def order(tokens: Artifact) -> RowOrder:
    return open_order(tokens, MIX, 12, STEP_ROWS)


def take(order: RowOrder, position: int, count: int, rank: int = 0, world_size: int = 1) -> list[RowBatch]:
    return list(islice(order.read(position, rank, world_size), count))


def test_both_kinds_are_tried(order: RowOrder, request: pytest.FixtureRequest) -> None:
    kind = request.node.callspec.params["tokens"]
    assert isinstance(order, {"stored": StoredRows, "made": MadeRows}[kind])


def test_the_ranks_of_a_step_share_its_rows(order: RowOrder) -> None:
    whole = take(order, 0, 6)
    for world_size in (2, 4):
        shares = [take(order, 0, 6, rank, world_size) for rank in range(world_size)]
        for step, rows in enumerate(whole):
            together = [share[step] for share in shares]
            assert np.array_equal(np.concatenate([part.row_ids for part in together]), rows.row_ids)
            assert np.array_equal(np.concatenate([part.input_ids for part in together]), rows.input_ids)
            assert np.array_equal(np.concatenate([part.labels for part in together]), rows.labels)


def test_the_order_goes_on_from_any_position_as_it_would_have(order: RowOrder) -> None:
    whole, position = take(order, 0, 12), 0
    for step, rows in enumerate(whole):
        again = take(order, position, 2)
        assert [part.row_ids.tolist() for part in again[:1]] == [rows.row_ids.tolist()]
        assert np.array_equal(again[0].input_ids, rows.input_ids)
        order.check(step, 0, rows.row_ids)
        position = order.follow(position, rows.row_ids)


def test_rows_that_do_not_come_next_are_refused(order: RowOrder) -> None:
    first, second = take(order, 0, 2)
    with pytest.raises(DataError, match="expected row"):
        order.follow(0, second.row_ids)
    with pytest.raises(DataError, match="expected row"):
        order.follow(0, first.row_ids[::-1].copy())
    with pytest.raises(DataError, match="expected row"):
        order.check(0, 0, np.concatenate([first.row_ids[:2], second.row_ids[:2]]))


def test_the_sources_come_by_their_weights_in_tokens(order: RowOrder) -> None:
    rows = take(order, 0, 60)
    sizes = np.zeros(2)
    for part in rows:
        np.add.at(sizes, order.source_of(part.row_ids), [sum(lens) for lens in part.doc_lens])
    assert sizes[0] / sizes.sum() == pytest.approx(0.75, abs=0.05)


def test_a_stage_changes_the_weights_about_at_its_step(tokens: Artifact) -> None:
    mix = MixConfig(
        weights={"ar_text": 0.9, "en_text": 0.1},
        stages={"turn": MixStageConfig(from_step=30, weights={"en_text": 1.0})},
        max_epochs=100,
    )
    order = open_order(tokens, mix, 60, STEP_ROWS)
    english = [float((order.source_of(rows.row_ids) == 1).mean()) for rows in take(order, 0, 60)]
    # Made rows turn within a segment, of which there are about six steps here.
    assert np.mean(english[:24]) < 0.25
    assert np.mean(english[38:]) > 0.95


def test_a_stage_may_be_called_as_it_likes(store: Store) -> None:
    tokens = encode(store, RecordKind.documents, store_rows=False, block_records=4)
    stages = {"mix": MixStageConfig(from_step=30, weights={"en_text": 1.0})}
    order = open_order(tokens, MixConfig(weights={"ar_text": 1.0}, stages=stages, max_epochs=100), 60, STEP_ROWS)
    assert not order.source_of(take(order, 0, 1)[0].row_ids).any()


def test_made_rows_are_of_the_corpus_and_the_tokenizer_that_were_measured(store: Store, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer" / "tiny" / "v1"
    tokens = encode(store, RecordKind.documents, str(folder), store_rows=False, block_records=4)
    definition = folder / "tokenizer.json"
    definition.write_text(definition.read_text() + " ")
    with pytest.raises(DataError, match=r"tokens/documents@v1 was encoded with another .*; encode it again"):
        open_order(tokens, MixConfig(max_epochs=100), 12, STEP_ROWS)
    manifest = tmp_path / "corpus" / "tiny" / "v1" / "manifest.json"
    manifest.write_text(
        manifest.read_text().replace(store.open(Ref.parse("corpus/tiny@v1")).manifest["fingerprint"], "0")
    )
    with pytest.raises(DataError, match=r"is to be made from another corpus/tiny@v1 than there is now"):
        open_order(tokens, MixConfig(max_epochs=100), 12, STEP_ROWS)


def test_a_mix_that_cannot_be_fed_is_refused_in_terms_of_the_run(tokens: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"mix\.weights names de_text, but the tokens hold ar_text, en_text"):
        open_order(tokens, MixConfig(weights={"de_text": 1.0}), 12, STEP_ROWS)
    with pytest.raises(ConfigError, match=r"would read ar_text .* times, mix\.max_epochs is 2"):
        open_order(tokens, MixConfig(weights={"ar_text": 1.0}, max_epochs=2), 500, STEP_ROWS)


def test_estimates_are_near_what_storing_finds(store: Store) -> None:
    stored = encode(store, RecordKind.documents).facts
    made = encode(store, RecordKind.documents, name="made", store_rows=False, block_records=4).facts
    assert made["block_records"] == 4
    assert made["tokenizer_hash"] == stored["tokenizer_hash"]
    for source in ("ar_text", "en_text"):
        assert made["sources"][source]["rows"] == pytest.approx(stored["sources"][source]["rows"], rel=0.25)
        assert made["sources"][source]["tokens"] == pytest.approx(stored["sources"][source]["tokens"], rel=0.25)
        assert made["sources"][source]["language"] == source[:2]


def test_a_run_on_made_rows_is_resumed_where_it_was(store: Store, tmp_path: Path) -> None:
    """Interrupted and resumed = uninterrupted, bit for bit, although no row lies anywhere."""
    encode(store, RecordKind.documents, store_rows=False, block_records=4)
    whole_config = train_config(store, mix=MIX, loop={"num_steps": 9, "checkpoint_every": 2})
    train_alone(store, whole_config, tmp_path / "whole")
    part = train_config(store, mix=MIX, loop={"num_steps": 9, "checkpoint_every": 2, "keep_checkpoints": 9})
    train_alone(store, part, tmp_path / "part")
    for step in (6, 8, 9):  # what a crash after step 5 leaves
        for file in (tmp_path / "part" / "checkpoints" / f"step_{step:08d}").glob("checkpoint.json"):
            file.unlink()
    before = weights(tmp_path / "part")
    train_alone(store, part, tmp_path / "part")
    after, whole = weights(tmp_path / "part"), weights(tmp_path / "whole")
    for name, value in whole.items():
        assert bool((after[name] == value).all())
        assert bool((before[name] == value).all())


def test_conversations_are_made_too(store: Store) -> None:
    tokens = encode(
        store,
        RecordKind.conversations,
        store_rows=False,
        block_records=4,
        packing=PackingConfig(overflow=Overflow.drop),
    )
    rows = take(open_order(tokens, MixConfig(max_epochs=100), 12, STEP_ROWS), 0, 3)
    assert all((part.labels >= 0).any() for part in rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"block_records": 8}, "block_records has no effect on stored rows"),
        ({"block_records": 0, "store_rows": False}, "block_records must be >= 1, got 0"),
        ({"kind": RecordKind.preferences, "store_rows": False}, "store_rows=false makes no rows of preferences"),
    ],
)
def test_options_without_effect_are_refused(changes: dict[str, Any], message: str, store: Store) -> None:
    with pytest.raises(ConfigError, match=message):
        encode(store, changes.pop("kind", RecordKind.documents), **changes)
