"""Laws of training, in process with a two-layer model in fp32, and on two processes over gloo."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import (
    ALONE,
    Recorder,
    largest_difference,
    make_job,
    train_alone,
    train_as_pair,
    train_config,
    weights,
)

from lisan.cluster.worker import ProcessGroup
from lisan.core.artifact import Store
from lisan.core.storage import Location
from lisan.data.rows import RowReader
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.score import Scorer, collate, sum_by_document
from lisan.tokenizer.labels import IGNORE_INDEX
from lisan.train.checkpoint.retention import find_latest
from lisan.train.objectives import Terms, causal_lm, preference
from lisan.train.options import Method, PreferenceLoss, TuningConfig
from lisan.train.preference.reference import attach_reference, score_reference
from lisan.train.run import run_worker

REORDERED_LOSS = 2e-6
"Relative, ten times what summing fp32 gradients in another order was measured to make of a loss in six steps."
REORDERED_NORM = 6e-6
"The same for gradient norms."
REORDERED_WEIGHT = 2e-5
"The same for weights of size 0.2, absolute, with Adam at a rate of 5e-3."


DPO = Terms(PreferenceLoss.sigmoid, beta=0.1, label_smoothing=0.0, length_normalised=False)


class KilledError(Exception):
    """Stands for a process that dies."""


def killed_at(step: int) -> Any:
    """Return a worker that dies as soon as the checkpoint of a step is reported."""

    def report(metrics: Any, checkpoint: str | None) -> None:
        if metrics["step"] == step:
            raise KilledError

    return replace(ALONE, report=report)


def tuning_of(method: str, base_model: str) -> dict[str, Any]:
    if method == "scratch":
        return {}
    model = ModelConfig(path=base_model)
    if method == "lora":
        return {"model": model, "tuning": TuningConfig(method=Method.lora, lora=LoraConfig(rank=4, dropout=0.2))}
    return {"model": model}


CASES = [("documents", "scratch"), ("documents", "full"), ("conversations", "lora"), ("preferences", "full")]


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(
    kind: str, method: str, tiny_store: Store, base_model: str, tmp_path: Path
) -> None:
    config = train_config(tiny_store, kind, **tuning_of(method, base_model))
    whole = train_alone(tiny_store, config, tmp_path / "whole")
    with pytest.raises(KilledError):
        train_alone(tiny_store, config, tmp_path / "cut", killed_at(3))
    assert not (tmp_path / "cut" / "model").exists()
    resumed = train_alone(tiny_store, config, tmp_path / "cut")
    assert resumed.taken == [4, 5, 6]
    assert resumed.curve("loss") == whole.curve("loss")[3:]
    first, second = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_steps_after_the_last_checkpoint_are_done_again_and_end_the_same(tiny_store: Store, tmp_path: Path) -> None:
    config = train_config(tiny_store)
    train_alone(tiny_store, config, tmp_path / "whole")
    job = make_job(tiny_store, config, tmp_path / "cut")
    reader = RowReader(job.tokens)

    def dies_after_five_steps() -> Any:
        from lisan.data.mix import make_plan

        plan = make_plan(reader.num_rows, config.mix, 6, 8)
        yield from (reader.read(plan.rows(8 * step, 8 * step + 8)) for step in range(5))
        raise KilledError

    with pytest.raises(KilledError):
        run_worker(job, replace(ALONE, stream=dies_after_five_steps))
    resumed = train_alone(tiny_store, config, tmp_path / "cut")
    assert resumed.taken == [4, 5, 6]
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0


@pytest.mark.parametrize(("kind", "method"), [("documents", "scratch"), ("preferences", "full")])
def test_a_batch_of_eight_is_eight_batches_of_one_on_ragged_lengths(
    kind: str, method: str, tiny_store: Store, base_model: str, tmp_path: Path
) -> None:
    runs = {}
    for micro_rows in (8, 1):
        config = train_config(tiny_store, kind, **tuning_of(method, base_model), loop={"micro_rows": micro_rows})
        runs[micro_rows] = train_alone(tiny_store, config, tmp_path / str(micro_rows))
    assert_same_run(runs[8], runs[1])
    assert largest_difference(weights(tmp_path / "8"), weights(tmp_path / "1")) < REORDERED_WEIGHT


def assert_same_run(first: Recorder, second: Recorder) -> None:
    """Hold losses and gradient norms equal up to the order of sums."""
    assert sorted(first.steps) == sorted(second.steps)
    for name, tolerance in (("loss", REORDERED_LOSS), ("grad_norm", REORDERED_NORM)):
        assert first.curve(name) == pytest.approx(second.curve(name), rel=tolerance)


@pytest.fixture(scope="module")
def pair(
    tiny_store: Store, base_model: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Recorder]]:
    """Runs of one process, of two, and of two that go on from where one was killed; one start of two processes for all."""
    folder = tmp_path_factory.mktemp("pair")
    jobs, runs = {}, {}
    for kind, method in CASES[1:]:
        changes = tuning_of(method, base_model)
        if method == "lora":  # every rank draws its own dropout
            changes["tuning"] = TuningConfig(method=Method.lora, lora=LoraConfig(rank=4))
        config = train_config(tiny_store, kind, **changes)
        runs[f"{kind} alone"] = train_alone(tiny_store, config, folder / kind / "alone")
        jobs[f"{kind} pair"] = make_job(tiny_store, config, folder / kind / "pair")
        with pytest.raises(KilledError):
            train_alone(tiny_store, config, folder / kind / "resumed", killed_at(3))
        jobs[f"{kind} resumed"] = make_job(tiny_store, config, folder / kind / "resumed")
    found = train_as_pair(list(jobs.values()), folder / "runs")
    return folder, {**runs, **dict(zip(jobs, found, strict=True))}


@pytest.mark.parametrize("kind", ["documents", "conversations", "preferences"])
def test_two_workers_do_what_one_does(kind: str, pair: tuple[Path, dict[str, Recorder]]) -> None:
    folder, runs = pair
    assert_same_run(runs[f"{kind} alone"], runs[f"{kind} pair"])
    assert largest_difference(weights(folder / kind / "alone"), weights(folder / kind / "pair")) < REORDERED_WEIGHT


@pytest.mark.parametrize("kind", ["documents", "conversations", "preferences"])
def test_a_run_of_one_worker_goes_on_with_two(kind: str, pair: tuple[Path, dict[str, Recorder]]) -> None:
    folder, runs = pair
    alone, resumed = runs[f"{kind} alone"], runs[f"{kind} resumed"]
    assert resumed.taken == [4, 5, 6]
    assert resumed.curve("loss") == pytest.approx(alone.curve("loss")[3:], rel=REORDERED_LOSS)
    assert largest_difference(weights(folder / kind / "alone"), weights(folder / kind / "resumed")) < REORDERED_WEIGHT


@pytest.mark.parametrize("kind", ["documents", "conversations", "preferences"])
def test_any_number_of_workers_reads_the_same_rows_in_the_same_order(
    kind: str, pair: tuple[Path, dict[str, Recorder]]
) -> None:
    books = []
    for name in ("alone", "pair", "resumed"):
        latest = find_latest(Location(str(pair[0] / kind / name)) / "checkpoints")
        assert latest is not None
        books.append((latest.step, latest.facts["rows_hash"], latest.facts["read"]))
    assert books[0] == books[1] == books[2]
    assert books[0][2]


def test_training_learns(tiny_store: Store, tmp_path: Path) -> None:
    loss = train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 20}), tmp_path).curve("loss")
    assert loss[-1] < loss[0] - 1


def test_the_first_preference_loss_is_ln_2(tiny_store: Store, base_model: str, tmp_path: Path) -> None:
    config = train_config(tiny_store, "preferences", loop={"num_steps": 40}, **tuning_of("full", base_model))
    run = train_alone(tiny_store, config, tmp_path)
    assert run.curve("loss")[0] == pytest.approx(math.log(2), abs=1e-6)
    assert run.curve("margin")[0] == pytest.approx(0, abs=1e-5)
    assert run.curve("loss")[-1] < math.log(2)


def test_swapping_chosen_and_rejected_flips_the_margin(tiny_store: Store, scorer: Scorer) -> None:
    reader = RowReader(open_tokens(tiny_store, "preferences"))
    rows = reader.read(range(4))
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    reference = torch.linspace(-30, -20, len(batch.doc_numbers))
    swapped = torch.arange(len(reference)).reshape(-1, 2).flip(1).flatten()

    def score_swapped(_: Any, with_log_z: bool = False) -> torch.Tensor:
        return scorer(batch)

    forth = preference(scorer, batch, reference, DPO)
    back = preference(score_swapped, replace(batch, doc_numbers=batch.doc_numbers[swapped]), reference[swapped], DPO)
    assert float(forth.metrics["margin"]) != 0
    assert float(back.metrics["margin"]) == pytest.approx(-float(forth.metrics["margin"]))
    assert float(back.metrics["accuracy"]) == forth.num_targets - float(forth.metrics["accuracy"])
    assert float(back.metrics["chosen_reward"]) == pytest.approx(float(forth.metrics["rejected_reward"]))


def open_tokens(store: Store, kind: str) -> Any:
    from lisan.core.artifact import Ref

    return store.open(Ref.parse(f"tokens/{kind}@v1"))


def test_masked_tokens_have_zero_gradient(tiny_store: Store, scorer: Scorer) -> None:
    """The gradient of the loss at the logits is zero wherever the next token has no label."""
    rows = RowReader(open_tokens(tiny_store, "conversations")).read(range(4))
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    hidden: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        output.last_hidden_state.retain_grad()
        hidden.append(output.last_hidden_state)

    scorer.model.get_decoder().register_forward_hook(keep)
    causal_lm(scorer, batch).total.backward()
    is_trained = torch.zeros_like(batch.labels, dtype=torch.bool)
    is_trained[:, :-1] = batch.labels[:, 1:] != IGNORE_INDEX
    size = hidden[0].grad.abs().sum(-1)
    assert 0 < is_trained.sum() < is_trained.numel()
    assert size[~is_trained].max() == 0
    assert size[is_trained].min() > 0


def test_a_document_without_labels_trains_nothing(tiny_store: Store, scorer: Scorer) -> None:
    rows = RowReader(open_tokens(tiny_store, "documents")).read([0])
    labels = rows.labels.copy()
    first = rows.doc_lens[0][0]
    labels[0, :first] = IGNORE_INDEX
    assert len(rows.doc_lens[0]) > 1
    embedded: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> None:
        output.retain_grad()
        embedded.append(output)

    scorer.model.get_input_embeddings().register_forward_hook(keep)
    causal_lm(scorer, collate(rows.input_ids, labels, rows.doc_lens)).total.backward()
    size = embedded[0].grad.abs().sum(-1)[0]
    assert size[:first].max() == 0
    assert size[first : sum(rows.doc_lens[0])].max() > 0
    assert size[sum(rows.doc_lens[0]) :].sum() == 0


def test_the_reference_pass_says_what_the_untrained_policy_says(
    tiny_store: Store, scorer: Scorer, tmp_path: Path
) -> None:
    from lisan.core.storage import Location

    reader = RowReader(open_tokens(tiny_store, "preferences"))
    with ProcessGroup(ALONE):
        reference = score_reference(scorer, reader, 4, Location(str(tmp_path)), ALONE)
    assert len(reference) == len(reader)
    rows = reader.read([5, 2])
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    assert torch.allclose(attach_reference(rows, reference), sum_by_document(scorer(batch), batch), atol=1e-4)
