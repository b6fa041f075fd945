"""KTO's estimate of the KL divergence."""

import pickle
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from shutil import copytree, rmtree
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from tiny import (
    ALONE,
    CONTEXT,
    Recorder,
    encode,
    largest_difference,
    preference,
    train_alone,
    train_config,
    weights,
    write_part,
)

from lisan.cluster.worker import ProcessGroup
from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import DataError
from lisan.core.storage import Location
from lisan.data.rows import RowBatch, RowReader
from lisan.model.config import ModelConfig
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.records.kinds import RecordKind
from lisan.tokenizer.labels import IGNORE_INDEX
from lisan.train.options import PreferenceLoss
from lisan.train.preference.kto import MismatchedReader, estimate_kl, mismatch
from lisan.train.preference.reference import REFERENCE, SCHEMA, make_reference, score_reference


def rows_of(documents: list[tuple[list[int], list[int]]], length: int = 16) -> RowBatch:
    """Make one row of documents, each a prompt and a reply."""
    ids, labels = np.zeros((1, length), np.int32), np.full((1, length), IGNORE_INDEX, np.int32)
    start = 0
    for prompt, reply in documents:
        ids[0, start : start + len(prompt + reply)] = prompt + reply
        start += len(prompt)
        labels[0, start : start + len(reply)] = reply
        start += len(reply)
    return RowBatch(np.array([7]), ids, labels, (tuple(len(prompt + reply) for prompt, reply in documents),))


NEXT = rows_of([([5, 5], [51, 52, 53, 54]), ([5, 5], [55])])


def test_every_prompt_gets_the_replies_of_the_next_pair() -> None:
    mixed = mismatch(rows_of([([1], [11]), ([1], [12, 12]), ([2, 2], [21, 21, 21]), ([2, 2], [22])]), NEXT)
    assert mixed.input_ids[0].tolist() == [1, 21, 21, 21, 1, 22, 2, 2, 11, 2, 2, 12, 12, 0, 0, 0]
    assert mixed.doc_lens == ((4, 2, 3, 4),)
    assert mixed.labels[0].tolist() == [
        -100,
        21,
        21,
        21,
        -100,
        22,
        -100,
        -100,
        11,
        -100,
        -100,
        12,
        12,
        -100,
        -100,
        -100,
    ]
    assert mixed.row_ids.tolist() == [7]


def test_three_pairs_go_round() -> None:
    mixed = mismatch(rows_of([([pair], [10 * pair + side]) for pair in (1, 2, 3) for side in (1, 2)]), NEXT)
    assert mixed.input_ids[0, :12].tolist() == [1, 21, 1, 22, 2, 31, 2, 32, 3, 11, 3, 12]


def test_a_pair_alone_in_its_row_takes_the_replies_of_the_next_row() -> None:
    mixed = mismatch(rows_of([([1], [11]), ([1], [12])]), NEXT)
    assert mixed.input_ids[0, :7].tolist() == [1, 51, 52, 53, 54, 1, 55]
    assert mixed.doc_lens == ((5, 2),)


def test_replies_of_the_next_row_end_where_the_row_does() -> None:
    mixed = mismatch(rows_of([([1] * 5, [11]), ([1] * 5, [12])]), NEXT)
    assert mixed.input_ids[0].tolist() == [*[1] * 5, 51, 52, 53, *[1] * 5, 55, 0, 0]
    assert mixed.doc_lens == ((8, 6),)


@pytest.fixture(params=[64, 256], ids=["one pair a row", "some pairs a row"])
def tokens(request: pytest.FixtureRequest, tiny_store: Store, tmp_path: Path) -> Artifact:
    """Preferences in short and in long rows."""
    if request.param == CONTEXT:
        return tiny_store.open(Ref.parse("tokens/preferences@v1"))
    copytree(tiny_store.root.root, tmp_path / "long")
    return encode(Store(str(tmp_path / "long")), RecordKind.preferences, name="long", context_length=request.param)


def test_every_reply_finds_a_prompt_and_every_row_fits(tokens: Artifact) -> None:
    every = range(len(RowReader(tokens)))
    plain, mixed = RowReader(tokens).read(every), MismatchedReader(tokens).read(every)
    assert [len(lens) for lens in mixed.doc_lens] == [len(lens) for lens in plain.doc_lens]
    for row, before, after in zip(every, plain.doc_lens, mixed.doc_lens, strict=True):
        assert sum(after) <= plain.input_ids.shape[1]
        if len(before) > 2:
            assert sorted(mixed.input_ids[row, : sum(after)]) == sorted(plain.input_ids[row, : sum(before)])
    batch = collate(mixed.input_ids, mixed.labels, mixed.doc_lens)
    assert (sum_by_document((batch.labels >= 0).float(), batch) > 0).all()


@pytest.mark.parametrize("moved", [0.3, -0.3])
def test_the_estimate_is_the_mean_gain_and_never_below_0(
    moved: float, tokens: Artifact, scorer: Scorer, tmp_path: Path
) -> None:
    reader = MismatchedReader(tokens)
    rows = RowReader(tokens).read(range(12))
    with ProcessGroup(ALONE):
        reference = score_reference(scorer, reader, 4, Location(str(tmp_path / "reference")), ALONE)
        assert estimate_kl(scorer, [rows], reader, reference, "cpu") == pytest.approx(0, abs=1e-4)
        shifted = replace(reference, logps=reference.logps - np.float32(moved))
        scorer.train()
        found = estimate_kl(scorer, [rows.part(0, 5), rows.part(5, 12)], reader, shifted, "cpu")
    assert found == pytest.approx(max(0.0, moved), abs=1e-4)
    assert scorer.training


def test_the_estimate_is_that_of_each_reply_scored_alone(tokens: Artifact, scorer: Scorer) -> None:
    """Replies that are exchanged by hand, from a row of its own each."""
    reader = RowReader(tokens)
    rows = reader.read([3, 4])
    documents = [
        (rows.input_ids[row, a:b], int((rows.labels[row, a:b] >= 0).argmax()))
        for row in (0, 1)
        for a, b in pairwise(np.cumsum((0, *rows.doc_lens[row])))
    ]
    num = len(rows.doc_lens[0])
    space = (rows.input_ids.shape[1] - sum(start for _, start in documents[:2])) // 2 if num == 2 else None
    total = 0.0
    for own in range(num):
        (prompt, start), (reply, other) = documents[own], documents[(own + 2) % num if num > 2 else own + 2]
        ids = np.concatenate([prompt[:start], reply[other:][:space]])[None]
        labels = np.where(np.arange(ids.size) < start, IGNORE_INDEX, ids)
        alone = collate(ids, labels, [[ids.size]])
        with torch.no_grad():
            total += float(sum_by_document(scorer(alone), alone))
    with ProcessGroup(ALONE):
        nats = make_reference(pa.table({"row_id": range(4), "logps": [[-1000.0] * num] * 4}, SCHEMA))
        found = estimate_kl(scorer, [rows.part(0, 1)], MismatchedReader(tokens), nats, "cpu")
    assert found == pytest.approx(total / num + 1000, abs=1e-3)


def test_a_reader_travels_as_what_it_is(tokens: Artifact) -> None:
    there = pickle.loads(pickle.dumps(MismatchedReader(tokens)))
    assert np.array_equal(there.read([0]).input_ids, MismatchedReader(tokens).read([0]).input_ids)
    assert not np.array_equal(there.read([0]).input_ids, RowReader(tokens).read([0]).input_ids)


def test_a_single_pair_has_nobody_to_exchange_with(tiny_store: Store, tmp_path: Path) -> None:
    store = Store(str(tmp_path / "single"))
    draft = store.begin(Ref.parse("corpus/single@v1"), {"of": "tests"}, ())
    write_part(draft.location, RecordKind.preferences, "en_pairs", "train", [preference("en_pairs", 0)])
    draft.commit({"sources": {"en_pairs": {"language": "en"}}})
    copytree(Path(tiny_store.root.root) / "tokenizer", tmp_path / "single" / "tokenizer")
    tokens = encode(store, RecordKind.preferences, corpus="corpus/single@v1")
    with pytest.raises(DataError, match=r"loss=kto .* tokens/preferences@v1 holds one pair; take loss=sigmoid"):
        MismatchedReader(tokens)


def test_micro_batches_and_interruptions_change_nothing(tiny_store: Store, base_model: str, tmp_path: Path) -> None:
    """The estimate is of the step: 8 rows at once are 8 times one, and a resumed run goes on with the same reference.

    Training on a few preferences makes every other reply less likely, and the estimate 0; a reference that is taken to
    have said 5 nats less gives it something to say.
    """

    def run(name: str, micro_rows: int) -> Recorder:
        model = ModelConfig(path=base_model)
        values: dict[str, Any] = {"model": model, "loss": PreferenceLoss.kto, "loop": {"micro_rows": micro_rows}}
        return train_alone(tiny_store, train_config(tiny_store, "preferences", **values), tmp_path / name)

    def file(name: str) -> Path:
        return tmp_path / name / "checkpoints" / "mismatched" / REFERENCE

    plain = run("plain", 8)
    assert plain.curve("loss")[0] == pytest.approx(0.5, abs=1e-5)
    assert plain.curve("kl")[0] == pytest.approx(0, abs=1e-4)
    said = pq.read_table(file("plain"))
    for name in ("8", "1"):
        file(name).parent.mkdir(parents=True)
        less = [{**row, "logps": [logp - 5 for logp in row["logps"]]} for row in said.to_pylist()]
        pq.write_table(pa.Table.from_pylist(less, SCHEMA.with_metadata(said.schema.metadata)), file(name))
    whole, single = run("8", 8), run("1", 1)
    assert whole.curve("kl")[0] == pytest.approx(5, abs=1e-3)
    assert whole.curve("loss")[0] == pytest.approx(0.5, abs=1e-5), "what one reply of a pair loses the other wins"
    for curve in ("loss", "kl"):
        assert single.curve(curve) == pytest.approx(whole.curve(curve), rel=1e-5, abs=1e-5)
    assert largest_difference(weights(tmp_path / "8"), weights(tmp_path / "1")) < 2e-5
    rmtree(tmp_path / "8" / "checkpoints" / "step_00000006")
    rmtree(tmp_path / "8" / "model")
    resumed = run("8", 8)
    for curve in ("loss", "kl"):
        assert resumed.curve(curve) == whole.curve(curve)[3:]
