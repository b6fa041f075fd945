"""Rows through Ray Data: every rank of 1, 2 and 4 workers gets exactly the plan's rows, from any step on."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest
from tiny import CONTEXT, encode

from lisan.core.artifact import Artifact, Ref, Store
from lisan.data.config import MixConfig, MixStageConfig
from lisan.data.mix import Plan, make_plan
from lisan.data.packing import PackedRow
from lisan.data.ray_stream import STREAM, PlanDataConfig, StreamPlan, iterate_rows
from lisan.data.row_order import StoredRows, open_order
from lisan.data.rows import RowBatch, RowReader, write_rows
from lisan.data.segments import split_position
from lisan.records.kinds import RecordKind
from lisan.tokenizer.labels import Example

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 2
NUM_STEPS, STEP_ROWS = 70, 8
MIX = MixConfig(
    weights={"ar_text": 0.7, "en_text": 0.3},
    stages={"anneal": MixStageConfig(from_step=41, weights={"en_text": 1.0})},
    max_epochs=1000,
)


@pytest.fixture(scope="module")
def tokens(tiny_store: Store) -> Artifact:
    return tiny_store.open(Ref.parse("tokens/documents@v1"))


@pytest.fixture(scope="module")
def plan(tokens: Artifact) -> Plan:
    return make_plan(RowReader(tokens).num_rows, MIX, NUM_STEPS, STEP_ROWS)


@pytest.mark.parametrize(("world_size", "first"), [(1, 0), (2, 0), (4, 0), (1, 37), (2, 64), (4, 69)])
def test_every_rank_gets_exactly_the_rows_of_the_plan(
    world_size: int, first: int, tokens: Artifact, plan: Plan
) -> None:
    stream = StreamPlan(StoredRows(RowReader(tokens), plan, STEP_ROWS), NUM_STEPS, lambda: (first, first * STEP_ROWS))
    shards = [config[STREAM] for config in PlanDataConfig(stream).configure({}, world_size, None, None)]

    def read(shard: object) -> list[np.ndarray]:
        return [
            rows.row_ids
            for rows, _ in zip(iterate_rows(shard, STEP_ROWS // world_size), range(first, NUM_STEPS), strict=False)
        ]

    with ThreadPoolExecutor(world_size) as pool:
        steps = np.array(list(pool.map(read, shards))).transpose(1, 0, 2)
    assert steps.shape == (NUM_STEPS - first, world_size, STEP_ROWS // world_size)
    assert np.array_equal(steps.ravel(), plan.rows(first * STEP_ROWS, NUM_STEPS * STEP_ROWS))


def test_rows_of_many_short_documents_and_of_one_long_one_stay_in_order(tmp_path: Path) -> None:
    """A block leaves Ray Data by its size, which the number of documents moves."""
    store = Store(str(tmp_path))
    draft = store.begin(Ref.parse("tokens/ragged@v1"), {}, ())
    sources = {}
    for source, size in (("long", CONTEXT), ("short", 2)):
        document = Example(*np.full((2, size), 7, np.int32))
        rows = [PackedRow(examples=[document] * (CONTEXT // size), free=0) for _ in range(300)]
        counts = write_rows(draft.location / "rows" / source / "shard-00000.arrow", rows, CONTEXT)
        sources[source] = {"language": "ar", **counts, "shards": {"shard-00000.arrow": 300}}
    tokens = draft.commit({"sources": sources, "context_length": CONTEXT})
    stages = {
        "long": MixStageConfig(from_step=80, weights={"long": 1}),
        "both": MixStageConfig(from_step=160, weights={"long": 1, "short": 1}),
    }
    mix = MixConfig(weights={"short": 1}, stages=stages)
    plan = make_plan(RowReader(tokens).num_rows, mix, 240, STEP_ROWS)
    stream = StreamPlan(StoredRows(RowReader(tokens), plan, STEP_ROWS), 240, lambda: (0, 0))
    [shard] = PlanDataConfig(stream).configure({}, 1, None, None)
    read = [rows.row_ids for rows, _ in zip(iterate_rows(shard[STREAM], STEP_ROWS), range(240), strict=False)]
    assert np.array_equal(np.concatenate(read), plan.rows(0, 240 * STEP_ROWS))


def test_what_travels_is_what_is_read(tokens: Artifact, plan: Plan) -> None:
    stream = StreamPlan(StoredRows(RowReader(tokens), plan, STEP_ROWS), 3, lambda: (1, STEP_ROWS))
    [shard] = PlanDataConfig(stream).configure({}, 1, None, None)
    rows = next(iterate_rows(shard[STREAM], STEP_ROWS))
    direct = RowReader(tokens).read(plan.rows(STEP_ROWS, 2 * STEP_ROWS))
    for name in ("row_ids", "input_ids", "labels"):
        assert np.array_equal(getattr(rows, name), getattr(direct, name))
    assert rows.doc_lens == direct.doc_lens


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_rows_made_on_the_way_come_in_the_order_in_which_one_process_makes_them(
    world_size: int, tiny_store: Store, tmp_path: Path
) -> None:
    for name in ("corpus", "tokenizer"):
        copytree(Path(tiny_store.root.root) / name, tmp_path / name)
    store = Store(str(tmp_path))
    made = encode(store, RecordKind.documents, store_rows=False, block_records=4)
    order = open_order(made, MixConfig(weights={"ar_text": 0.7, "en_text": 0.3}, max_epochs=1000), 60, STEP_ROWS)
    whole = list(islice(order.read(0, 0, 1), 60))
    position = 0
    for rows in whole[:7]:
        position = order.follow(position, rows.row_ids)
    assert split_position(position)[1] > 0, "the test must begin within a segment"
    stream = StreamPlan(order, 60, lambda: (7, position))
    shards = [config[STREAM] for config in PlanDataConfig(stream).configure({}, world_size, None, None)]

    def read(shard: object) -> list[RowBatch]:
        return list(islice(iterate_rows(shard, STEP_ROWS // world_size), 53))

    with ThreadPoolExecutor(world_size) as pool:
        shares = list(pool.map(read, shards))
    for step, rows in enumerate(whole[7:]):
        together = [share[step] for share in shares]
        assert np.array_equal(np.concatenate([part.row_ids for part in together]), rows.row_ids)
        assert np.array_equal(np.concatenate([part.input_ids for part in together]), rows.input_ids)
