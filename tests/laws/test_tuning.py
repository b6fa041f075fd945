"""Laws of what is trained: rows that are not trained stay as they are, adapters merge into what they were trained as."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ALONE,
    SHAPE,
    Recorder,
    largest_difference,
    make_job,
    train_alone,
    train_as_pair,
    train_config,
    weights,
)

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup
from lisan.core.artifact import Store
from lisan.data.rows import RowReader
from lisan.model.adapters.lora import read_adapter
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.embeddings.new_rows import read_new_rows
from lisan.model.embeddings.trained_rows import TRAINED_ROWS, freeze_other_rows
from lisan.model.load import load_model
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Scorer, collate
from lisan.train.checkpoint.retention import find_latest
from lisan.train.checkpoint.sharded_state import load
from lisan.train.objectives import causal_lm
from lisan.train.optim import make_optimizer
from lisan.train.options import Method, Quantisation, Rows, TuningConfig
from lisan.train.run import plan_run
from lisan.train.setup.base_model import open_places, prepare_model

from .test_train import KilledError, assert_same_run, killed_at
from .tuned import LORA, NEW_ROWS, grown, tuned_config

REORDERED_WEIGHT = 5e-5
"As in the laws of training; rows of the vocabulary are fewer sums away from their gradients."
MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


CASES = [(name, tie) for name in NEW_ROWS for tie in (True, False)]
ADAPTERS = {
    "lora": LORA,
    "rslora": LoraConfig(rank=4, alpha=16, use_rslora=True),
    "dora": LoraConfig(rank=4, alpha=16, use_dora=True, targets=("all",)),
}
HAS_NF4 = find_spec("bitsandbytes") is not None
needs_nf4 = pytest.mark.skipif(not HAS_NF4, reason="needs bitsandbytes: pip install -e '.[qlora]'")
NF4 = TuningConfig(
    method=Method.lora, rows=Rows.new, quantise_base=Quantisation.nf4, lora=replace(LORA, targets=("all",))
)


def adapter_config(store: Store, base: str, lora: LoraConfig) -> Any:
    return train_config(store, "en", model=ModelConfig(path=base), tuning=TuningConfig(method=Method.lora, lora=lora))


Runs = tuple[Path, dict[str, Recorder]]


@pytest.fixture(scope="module")
def runs(expanded: Store, bases: dict[bool, str], tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Each way to train, in one process and in two, rows also in two that go on from where one was killed; one start for all."""
    folder = tmp_path_factory.mktemp("runs")
    configs = {f"{name}-{tie}": tuned_config(expanded, bases[tie], NEW_ROWS[name]) for name, tie in CASES}
    ways = dict.fromkeys(configs, ("pair", "resumed"))
    configs |= {name: adapter_config(expanded, bases[False], lora) for name, lora in ADAPTERS.items()}
    configs |= {"nf4": tuned_config(expanded, bases[True], NF4)} if HAS_NF4 else {}
    found, jobs = {}, {}
    for name, config in configs.items():
        found[f"{name} alone"] = train_alone(expanded, config, folder / name / "alone")
        for way in ways.get(name, ("pair",)):
            jobs[f"{name} {way}"] = make_job(expanded, config, folder / name / way)
        if name in ways:
            with pytest.raises(KilledError):
                train_alone(expanded, config, folder / name / "resumed", killed_at(3))
    pairs = train_as_pair(list(jobs.values()), folder / "pairs")
    return folder, {**found, **dict(zip(jobs, pairs, strict=True))}


@pytest.mark.parametrize("workers", ["alone", "pair", "resumed"])
@pytest.mark.parametrize(("name", "tie"), CASES)
def test_rows_that_are_not_trained_stay_to_the_last_bit(
    name: str, tie: bool, workers: str, runs: Runs, bases: dict[bool, str]
) -> None:
    folder = runs[0] / f"{name}-{tie}" / workers
    before, after = load_file(Path(bases[tie]) / "model.safetensors"), weights(folder)
    [manifest] = read_new_rows(folder / "model")
    new = sorted(manifest.pieces)
    assert ("lm_head.weight" in after) is not tie
    for matrix in set(MATRICES) & set(after):
        old = [row for row in range(len(before[matrix])) if row not in manifest.pieces]
        assert torch.equal(after[matrix][old], before[matrix][old])
        moved = (after[matrix][new] != grown(bases[tie], manifest)[matrix][new]).any(1)
        assert moved.all() if matrix == "lm_head.weight" or tie else moved.any()
    blocks = [matrix for matrix in before if matrix not in MATRICES]
    unmoved = [matrix for matrix in blocks if torch.equal(before[matrix], after[matrix])]
    assert len(unmoved) == {"embeddings": len(blocks), "lora": 2 * SHAPE.num_layers + 1, "full": 0}[name]


@pytest.mark.parametrize(("name", "tie"), CASES)
def test_two_workers_train_the_rows_that_one_does(name: str, tie: bool, runs: tuple[Path, dict[str, Recorder]]) -> None:
    folder, found = runs[0] / f"{name}-{tie}", runs[1]
    assert_same_run(found[f"{folder.name} alone"], found[f"{folder.name} pair"])
    assert largest_difference(weights(folder / "alone"), weights(folder / "pair")) < REORDERED_WEIGHT
    assert found[f"{folder.name} resumed"].taken == [4, 5, 6]
    assert largest_difference(weights(folder / "alone"), weights(folder / "resumed")) < REORDERED_WEIGHT


RESUMED = [
    pytest.param(True, NEW_ROWS["lora"], id="tied"),
    pytest.param(False, NEW_ROWS["lora"], id="untied"),
    pytest.param(False, TuningConfig(method=Method.lora, lora=ADAPTERS["dora"]), id="dora"),
    pytest.param(True, NF4, id="nf4", marks=needs_nf4),
]


@pytest.mark.parametrize(("tie", "tuning"), RESUMED)
def test_interrupted_tuning_is_uninterrupted_bit_for_bit(
    tie: bool, tuning: TuningConfig, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    config = tuned_config(expanded, bases[tie], tuning)
    train_alone(expanded, config, tmp_path / "whole")
    with pytest.raises(KilledError):
        train_alone(expanded, config, tmp_path / "cut", killed_at(3))
    train_alone(expanded, config, tmp_path / "cut")
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0


@pytest.mark.parametrize("rows", [Rows.new, Rows.all])
@pytest.mark.parametrize("tie", [True, False])
def test_an_adapter_with_trained_rows_over_its_base_is_the_merged_model(
    tie: bool, rows: Rows, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    tuning = TuningConfig(method=Method.lora, rows=rows, lora=LORA)
    train_alone(expanded, tuned_config(expanded, bases[tie], tuning, loop={"num_steps": 2}), tmp_path)
    folder = tmp_path / "model" / "adapter"
    [manifest] = read_new_rows(folder)
    ids = load_file(folder / TRAINED_ROWS)["ids"].tolist()
    assert ids == (sorted(manifest.pieces) if rows is Rows.new else list(range(manifest.rows_after)))
    assert all("lora_" in name for name in load_file(folder / "adapter_model.safetensors"))
    merged = read_adapter(load_model(bases[tie]), folder).merge_and_unload()
    assert largest_difference(dict(merged.state_dict()), dict(load_model(str(tmp_path / "model")).state_dict())) < 1e-6


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_over_sharded_weights_learns_what_it_does_over_whole_ones(
    name: str, runs: Runs, expanded: Store, bases: dict[bool, str]
) -> None:
    """DoRA divides by the norms of weights of which every process holds a share."""
    folder, found = runs
    assert_same_run(found[f"{name} alone"], found[f"{name} pair"])
    assert largest_difference(weights(folder / name / "alone"), weights(folder / name / "pair")) < REORDERED_WEIGHT
    job = make_job(expanded, adapter_config(expanded, bases[False], ADAPTERS[name]), folder / "none")
    rows = next(plan_run(job.config, job.tokens)[1].read(0, 0, 1))
    model = prepare_model(job.config, open_places(job.config, job.parents)).model
    loss = causal_lm(Scorer(model), collate(rows.input_ids, rows.labels, rows.doc_lens))
    (loss.total / loss.num_targets).backward()
    norm = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert found[f"{name} pair"].curve("grad_norm")[0] == pytest.approx(float(norm), rel=1e-5)
    assert found[f"{name} pair"].curve("loss")[0] == pytest.approx(loss.total.item() / loss.num_targets, rel=1e-5)


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_trained_adapter_over_its_base_is_the_merged_model(name: str, runs: Runs, bases: dict[bool, str]) -> None:
    place = runs[0] / name / "pair" / "model"
    adapted, merged = read_adapter(load_model(bases[False]), place / "adapter").eval(), load_model(str(place)).eval()
    ids = torch.arange(120).view(4, 30)
    with torch.no_grad():
        found, wanted, before = (one(input_ids=ids).logits for one in (merged, adapted, load_model(bases[False])))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


MERGED = 1e-4
"Nats by which a log-probability of a merged model may differ from the trained one's, saved in fp32: the order of sums."
MERGED_BF16 = 0.03
"Nats a token that rounding merged weights to bfloat16 may cost, ten times what it was measured to."


@needs_nf4
def test_adapters_over_four_bits_learn_the_same_on_two_workers(runs: Runs) -> None:
    folder, alone, pair = runs[0] / "nf4", runs[1]["nf4 alone"], runs[1]["nf4 pair"]
    assert_same_run(alone, pair)
    assert alone.curve("loss")[-1] < alone.curve("loss")[0]
    assert largest_difference(weights(folder / "alone"), weights(folder / "pair")) < REORDERED_WEIGHT


@needs_nf4
def test_a_model_trained_over_four_bits_says_merged_what_it_said_in_training(
    runs: Runs, expanded: Store, bases: dict[bool, str]
) -> None:
    """The weights of the last checkpoint over their 4-bit base, the merged folder, and base and adapter put together again."""
    folder, config = runs[0] / "nf4", tuned_config(expanded, bases[True], NF4)
    job = make_job(expanded, config, folder / "alone")
    rows = RowReader(job.tokens).read([0, 1, 2, 3])
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    adapted = prepare_model(config, open_places(config, job.parents))
    with ProcessGroup(ALONE), torch.no_grad():
        scorer = shard(Scorer(adapted.model), "cpu", config.precision)
        latest = find_latest(job.checkpoints)
        assert latest is not None
        load(scorer, make_optimizer(scorer, config.optim, freeze_other_rows(scorer.model, adapted.rows)), latest)
        trained = scorer.eval()(batch)
    place = folder / "alone" / "model"
    merged = Scorer(load_model(str(place))).eval()(batch).detach()
    again = Scorer(read_adapter(load_model(bases[True]), place / "adapter").base_model.model).eval()(batch).detach()
    unrounded = read_adapter(load_model(bases[True]), place / "adapter", as_trained=False).base_model.model
    assert torch.allclose(merged, trained, atol=MERGED)
    assert torch.allclose(again, trained, atol=MERGED)
    assert not torch.allclose(Scorer(unrounded).eval()(batch), trained, atol=100 * MERGED)


@needs_nf4
def test_what_merging_to_bfloat16_costs_is_measured_and_kept(
    runs: Runs, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    config = replace(tuned_config(expanded, bases[True], NF4), save_precision=Precision.bfloat16)
    train_alone(expanded, config, tmp_path)
    said = json.loads((tmp_path / "model" / "adapter" / "quantised_base.json").read_bytes())
    exact = json.loads((runs[0] / "nf4" / "alone" / "model" / "adapter" / "quantised_base.json").read_bytes())
    assert said["quantise_base"] == "nf4"
    assert MERGED < said["merged_nats"] < MERGED_BF16
    assert exact["merged_nats"] < MERGED
