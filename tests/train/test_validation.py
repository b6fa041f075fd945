"""Held-out loss: what it is a mean of, that training does not notice it, and what is refused."""

from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
import torch
from tiny import encode, largest_difference, make_job, no_run, train_alone, train_as_pair, train_config, weights

from lisan.cluster.worker import ProcessGroup, Worker
from lisan.core.artifact import Ref, Store
from lisan.core.errors import ConfigError, LisanError
from lisan.core.stage import ClusterConfig, run_stage
from lisan.core.storage import Location
from lisan.data.config import MixConfig
from lisan.data.rows import RowReader
from lisan.model.config import ModelConfig
from lisan.model.score import Scorer, collate
from lisan.records.kinds import RecordKind
from lisan.train.checkpoint.retention import find_best, find_latest
from lisan.train.checkpoint_validation import Validator
from lisan.train.config import DpoConfig
from lisan.train.launch_checks import check
from lisan.train.options import ValidationConfig
from lisan.train.stages import CPT
from lisan.train.validation import measure_losses

HELD_OUT = "tokens/held_out@v1"
ALONE = Worker(threads=1)


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the tiny store with the validation split encoded as well."""
    root = tmp_path_factory.mktemp("validation") / "root"
    copytree(tiny_store.root.root, root)
    made = Store(str(root))
    encode(made, RecordKind.documents, name="held_out", split="validation")
    return made


@pytest.fixture
def reader(store: Store) -> RowReader:
    return RowReader(store.open(Ref.parse(HELD_OUT)))


def config(store: Store, kind: str = "documents", num_rows: int = 5, every: int = 0, **changes: Any) -> Any:
    validation = ValidationConfig(tokens=HELD_OUT, num_rows=num_rows, every=every)
    return train_config(store, kind, **{"validation": validation, **changes})


@pytest.mark.parametrize("num_rows", [5, 1000])
def test_the_loss_is_the_mean_over_all_held_out_targets(scorer: Scorer, reader: RowReader, num_rows: int) -> None:
    with ProcessGroup(ALONE):
        found = measure_losses(scorer, reader, num_rows, 2, ALONE)
    assert len(reader) > 5
    row_ids = (
        np.arange(len(reader)) if num_rows > len(reader) else np.linspace(0, len(reader) - 1, 5).round().astype(int)
    )
    nll, targets = np.zeros(len(reader.sources)), np.zeros(len(reader.sources))
    scorer.eval()
    for row_id in row_ids:
        rows = reader.read([row_id])
        batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
        source = reader.source_of(rows.row_ids)[0]
        with torch.no_grad():
            nll[source] -= float(scorer(batch).double().sum())
        targets[source] += int((batch.labels[:, 1:] >= 0).sum())
    assert found["validation/loss"] == pytest.approx(nll.sum() / targets.sum(), rel=1e-5)
    for index, source in enumerate(reader.sources):
        assert found[f"validation/loss/{source}"] == pytest.approx(nll[index] / targets[index], rel=1e-5)
    assert found["validation/language_loss/ar"] == pytest.approx(nll[0] / targets[0], rel=1e-5)


def test_training_does_not_notice(store: Store, base_model: str, tmp_path: Path) -> None:
    """With dropout, which would, if a random number were drawn or the model stayed in evaluation mode."""
    from lisan.model.config import LoraConfig
    from lisan.train.options import Method, TuningConfig

    lora: dict[str, Any] = {
        "model": ModelConfig(path=base_model),
        "tuning": TuningConfig(method=Method.lora, lora=LoraConfig(rank=4, dropout=0.2)),
    }
    plain = train_alone(store, train_config(store, **lora), tmp_path / "plain")
    measured = train_alone(store, config(store, every=1, **lora), tmp_path / "measured")
    assert plain.curve("loss") == measured.curve("loss")
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "measured")) == 0
    assert all("validation/loss" in metrics for metrics in measured.steps.values())


def validated(run: Any) -> dict[int, float]:
    return {
        step: metrics["validation/loss"] for step, metrics in sorted(run.steps.items()) if "validation/loss" in metrics
    }


def test_it_is_measured_with_every_checkpoint_or_every_few_steps(store: Store, tmp_path: Path) -> None:
    loop = {"num_steps": 5, "checkpoint_every": 3}
    assert list(validated(train_alone(store, config(store, loop=loop), tmp_path / "0"))) == [3, 5]
    assert list(validated(train_alone(store, config(store, loop=loop, every=2), tmp_path / "2"))) == [2, 4, 5]


def test_the_best_checkpoints_are_those_of_lowest_held_out_loss(store: Store, tmp_path: Path) -> None:
    loop = {"num_steps": 6, "checkpoint_every": 1, "keep_checkpoints": 1, "keep_best": 2}
    losses = validated(train_alone(store, config(store, loop=loop), tmp_path))
    folder = Location(str(tmp_path)) / "checkpoints"
    assert [found.step for found in find_best(folder, 2)] == sorted(losses, key=lambda step: losses[step])[:2]
    latest = find_latest(folder)
    assert latest is not None
    assert latest.facts["loss"] == losses[6]


def test_a_checkpoint_between_two_validations_is_not_ranked_among_those_that_were_measured(
    store: Store, tmp_path: Path
) -> None:
    """Of six checkpoints two fall on a validation; the others have a loss of another kind."""
    loop = {"num_steps": 6, "checkpoint_every": 1, "keep_checkpoints": 5, "keep_best": 3}
    losses = validated(train_alone(store, config(store, loop=loop, every=3), tmp_path))
    folder = Location(str(tmp_path)) / "checkpoints"
    assert sorted(losses) == [3, 6]
    assert {found.step: found.facts["loss"] for found in find_best(folder, 9)} == losses


def test_two_workers_measure_what_one_does(store: Store, tmp_path: Path) -> None:
    """Five rows do not divide among two ranks with four at a time."""
    alone = train_alone(store, config(store), tmp_path / "alone")
    [pair] = train_as_pair([make_job(store, config(store), tmp_path / "pair")], tmp_path / "runs")
    assert validated(pair) == pytest.approx(validated(alone), rel=1e-5)
    assert len(validated(pair)) == 2


def test_a_manifest_names_what_was_held_out_and_the_best(store: Store) -> None:
    made = run_stage(CPT, config(store, name="held", loop={"keep_best": 1, "num_steps": 2}), no_run, lambda _: None)
    assert HELD_OUT in made.manifest["parents"]
    [(step, loss)] = made.facts["best_checkpoints"].items()
    assert int(step) == 2
    assert loss > 0


@pytest.mark.parametrize(
    ("tokens", "said"),
    [
        ("tokens/documents@v1", "holds the split train of corpus/tiny@v1, of which ar_text, en_text is trained on"),
        ("tokens/again@v1", "again@v1 holds the split train of corpus/tiny@v1, of which en_text is trained on; encode"),
        ("tokens/preferences@v1", "holds preferences"),
        ("tokens/none@v1", "tokens/none@v1 does not exist"),
        ("tokens/made@v1", "stores no rows"),
    ],
)
def test_rows_that_are_not_held_out_or_not_text_are_refused(tokens: str, said: str, store: Store) -> None:
    if tokens == "tokens/made@v1":
        encode(store, RecordKind.documents, name="made", split="validation", store_rows=False)
    if tokens == "tokens/again@v1":
        encode(store, RecordKind.documents, name="again", context_length=32, sources=("en_text",))
    with pytest.raises(LisanError, match=said) as caught:
        run_stage(
            CPT, train_config(store, name="t", validation=ValidationConfig(tokens=tokens)), no_run, lambda _: None
        )
    assert "\n" not in str(caught.value)


def test_sources_that_are_not_trained_on_are_held_out_in_any_split(store: Store) -> None:
    encode(store, RecordKind.documents, name="arabic", sources=("ar_text",))
    validation = ValidationConfig(tokens="tokens/arabic@v1")
    mixed = train_config(store, name="t", validation=validation, mix=MixConfig(weights={"en_text": 1.0}))
    check(mixed, store)
    with pytest.raises(ConfigError, match="of which ar_text is trained on"):
        check(train_config(store, name="t", validation=validation), store)


@pytest.mark.parametrize(
    "values",
    [
        {"num_rows": 0},
        {"every": -1},
        {"every": 5},
        {"num_rows": 7},
        {"asynchronous": True},
        {"asynchronous": True, "every": 5, "tokens": HELD_OUT},
    ],
)
def test_an_impossible_validation_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="validation"):
        ValidationConfig(**values)


@pytest.mark.parametrize(
    ("num_workers", "loop", "said"),
    [
        (0, {}, r"asynchronous=true needs workers of Ray Train .*cluster\.num_workers is 0"),
        (2, {"async_checkpoints": False}, r"no effect with loop\.async_checkpoints=false"),
    ],
)
def test_a_validation_with_nothing_to_run_beside_is_refused(
    store: Store, num_workers: int, loop: dict[str, Any], said: str
) -> None:
    validation = ValidationConfig(tokens=HELD_OUT, asynchronous=True)
    with pytest.raises(ConfigError, match=said) as caught:
        train_config(store, validation=validation, cluster=ClusterConfig(num_workers=num_workers), loop=loop)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_validator_finds_in_a_checkpoint_what_training_measured(
    method: str, store: Store, base_model: str, tmp_path: Path
) -> None:
    """With an adapter a checkpoint holds no frozen weight: those come from the model that training starts from."""
    from lisan.train.options import Method, TuningConfig

    changes = {"model": ModelConfig(path=base_model), "tuning": TuningConfig(method=Method(method))}
    measured = config(store, loop={"keep_checkpoints": 9}, **changes)
    found = validated(train_alone(store, measured, tmp_path))
    with ProcessGroup(ALONE):
        validator = Validator(make_job(store, measured, tmp_path), ALONE)
        # The latest first: each checkpoint is filled in whole.
        again = {step: validator.measure(step)["validation/loss"] for step in sorted(found, reverse=True)}
    assert again == pytest.approx(found, rel=1e-6)
    assert len(set(found.values())) == len(found) == 2


def test_preferences_measure_no_held_out_loss(store: Store) -> None:
    model = ModelConfig(path="model/t@v1")
    with pytest.raises(ConfigError, match="train_dpo measures no held-out loss"):
        DpoConfig(name="t", tokens="tokens/t@v1", model=model, validation=ValidationConfig(tokens=HELD_OUT))
