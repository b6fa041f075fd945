"""Laws of what is trained: rows that are not trained stay as they are, adapters merge into what they were trained as."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import (
    ALONE,
    SHAPE,
    Recorder,
    encode,
    largest_difference,
    make_job,
    no_run,
    silent,
    train_alone,
    train_as_pair,
    train_config,
    weights,
)

from lisan.core.artifact import Store
from lisan.core.stage import StorageConfig, run_stage
from lisan.core.storage import Location
from lisan.corpus.records import RecordKind
from lisan.model.adapter import LoraConfig, merge_adapter, read_adapter
from lisan.model.load import ModelConfig, ShapeConfig, load_model
from lisan.model.new_rows import read_new_rows
from lisan.model.parallel import Precision, shard
from lisan.model.score import Scorer, collate
from lisan.model.trained_rows import TRAINED_ROWS, freeze_other_rows
from lisan.tokens.rows import RowReader
from lisan.train.checkpoint import find_latest, load
from lisan.train.job import plan_run
from lisan.train.objectives import causal_lm
from lisan.train.optim import MomentType, make_optimizer
from lisan.train.outcome import open_places, prepare_model
from lisan.train.tuning import Method, Quantisation, Rows, TuningConfig
from lisan.train.worker import ProcessGroup
from lisan.vocabulary.expand import TOKENIZER, TokenizerConfig

from .test_train import KilledError, assert_same_run, killed_at

REORDERED_WEIGHT = 5e-5
"As in the laws of training; rows of the vocabulary are fewer sums away from their gradients."
MATRICES = ("model.embed_tokens.weight", "lm_head.weight")


@pytest.fixture(scope="module")
def expanded(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a tokenizer of English only, its Arabic expansion, and documents in the pieces of both."""
    root = tmp_path_factory.mktemp("tuning")
    copytree(Path(tiny_store.root.root) / "corpus", root / "corpus")
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    english = TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common)
    arabic = TokenizerConfig(name="enar", base="tokenizer/en@v1", sources=("ar_text",), num_pieces=150, **common)
    for config in (english, arabic):
        run_stage(TOKENIZER, config, no_run, silent)
    store = Store(str(root))
    for name in ("en", "enar"):
        encode(store, RecordKind.documents, f"tokenizer/{name}@v1", name=name)
    return store


@pytest.fixture(scope="module")
def bases(expanded: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Folders of two models of English, one tied and one not."""
    folder = tmp_path_factory.mktemp("bases")
    for tie in (True, False):
        start = ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="tokenizer/en@v1", init_std=0.2)
        train_alone(expanded, train_config(expanded, "en", model=start, loop={"num_steps": 1}), folder / str(tie))
    return {tie: str(folder / str(tie) / "model") for tie in (True, False)}


def tuned_config(store: Store, base: str, tuning: TuningConfig, **changes: Any) -> Any:
    """Return a run over an expansion with a weight decay that nobody can overlook."""
    model = ModelConfig(path=base, tokenizer="tokenizer/enar@v1")
    return train_config(store, "enar", model=model, tuning=tuning, optim={"weight_decay": 0.5}, **changes)


LORA = LoraConfig(rank=4, alpha=16)
NEW_ROWS = {
    "embeddings": TuningConfig(method=Method.embeddings, rows=Rows.new),
    "lora": TuningConfig(method=Method.lora, rows=Rows.new, lora=LORA),
    "full": TuningConfig(rows=Rows.new),
}
CASES = [(name, tie) for name in NEW_ROWS for tie in (True, False)]


@pytest.fixture(scope="module")
def runs(
    expanded: Store, bases: dict[bool, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Recorder]]:
    """Each way to train new rows, in one process, in two, and in two that go on from where one was killed."""
    folder = tmp_path_factory.mktemp("rows")
    jobs, found = {}, {}
    for name, tie in CASES:
        config, place = tuned_config(expanded, bases[tie], NEW_ROWS[name]), folder / f"{name}-{tie}"
        found[f"{place.name} alone"] = train_alone(expanded, config, place / "alone")
        with pytest.raises(KilledError):
            train_alone(expanded, config, place / "resumed", killed_at(3))
        jobs[f"{place.name} pair"] = make_job(expanded, config, place / "pair")
        jobs[f"{place.name} resumed"] = make_job(expanded, config, place / "resumed")
    pairs = train_as_pair(list(jobs.values()), folder / "pairs")
    return folder, {**found, **dict(zip(jobs, pairs, strict=True))}


@pytest.mark.parametrize("workers", ["alone", "pair", "resumed"])
@pytest.mark.parametrize(("name", "tie"), CASES)
def test_rows_that_are_not_trained_stay_to_the_last_bit(
    name: str, tie: bool, workers: str, runs: tuple[Path, dict[str, Recorder]], bases: dict[bool, str]
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


def grown(base: str, manifest: Any) -> dict[str, torch.Tensor]:
    from lisan.model.new_rows import replay_new_rows

    model = load_model(base)
    replay_new_rows(model, manifest)
    return dict(model.state_dict())


@pytest.mark.parametrize(("name", "tie"), CASES)
def test_two_workers_train_the_rows_that_one_does(name: str, tie: bool, runs: tuple[Path, dict[str, Recorder]]) -> None:
    folder, found = runs[0] / f"{name}-{tie}", runs[1]
    assert_same_run(found[f"{folder.name} alone"], found[f"{folder.name} pair"])
    assert largest_difference(weights(folder / "alone"), weights(folder / "pair")) < REORDERED_WEIGHT
    assert sorted(found[f"{folder.name} resumed"].steps) == [4, 5, 6]
    assert largest_difference(weights(folder / "alone"), weights(folder / "resumed")) < REORDERED_WEIGHT


@pytest.mark.parametrize("tie", [True, False])
def test_interrupted_training_of_rows_is_uninterrupted_bit_for_bit(
    tie: bool, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    config = tuned_config(expanded, bases[tie], NEW_ROWS["lora"])
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
    merged = merge_adapter(read_adapter(load_model(bases[tie]), folder))
    assert largest_difference(dict(merged.state_dict()), dict(load_model(str(tmp_path / "model")).state_dict())) < 1e-6


ADAPTERS = {
    "lora": LORA,
    "rslora": LoraConfig(rank=4, alpha=16, use_rslora=True),
    "dora": LoraConfig(rank=4, alpha=16, use_dora=True, targets=("all",)),
}


@pytest.fixture(scope="module")
def adapters(
    expanded: Store, bases: dict[bool, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Recorder]]:
    """Each kind of adapter, trained in one process and in two."""
    folder = tmp_path_factory.mktemp("adapters")
    configs = {name: adapter_config(expanded, bases[False], lora) for name, lora in ADAPTERS.items()}
    alone = {name: train_alone(expanded, config, folder / name / "alone") for name, config in configs.items()}
    jobs = [make_job(expanded, config, folder / name / "pair") for name, config in configs.items()]
    pairs = dict(zip(configs, train_as_pair(jobs, folder / "pairs"), strict=True))
    return folder, {
        f"{name} {way}": run for way, some in (("alone", alone), ("pair", pairs)) for name, run in some.items()
    }


def adapter_config(store: Store, base: str, lora: LoraConfig) -> Any:
    return train_config(store, "en", model=ModelConfig(path=base), tuning=TuningConfig(method=Method.lora, lora=lora))


@pytest.mark.parametrize("name", ADAPTERS)
def test_an_adapter_over_sharded_weights_learns_what_it_does_over_whole_ones(
    name: str, adapters: tuple[Path, dict[str, Recorder]], expanded: Store, bases: dict[bool, str]
) -> None:
    """DoRA divides by the norms of weights of which every process holds a share."""
    folder, found = adapters
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
def test_a_trained_adapter_over_its_base_is_the_merged_model(
    name: str, adapters: tuple[Path, dict[str, Recorder]], bases: dict[bool, str]
) -> None:
    place = adapters[0] / name / "pair" / "model"
    adapted, merged = read_adapter(load_model(bases[False]), place / "adapter").eval(), load_model(str(place)).eval()
    ids = torch.arange(120).view(4, 30)
    with torch.no_grad():
        found, wanted, before = (one(input_ids=ids).logits for one in (merged, adapted, load_model(bases[False])))
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


MERGED = 1e-4
"Nats by which a log-probability of a merged model may differ from the trained one's, saved in fp32: the order of sums."
MERGED_BF16_KL = 3e-4
"Nats a token that rounding merged weights to bfloat16 may cost, ten times what it was measured to."


@pytest.fixture(scope="module")
def qlora(expanded: Store, bases: dict[bool, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """LoRA and DoRA over a base in 4 bits with new rows, in one process and in two."""
    pytest.importorskip("bitsandbytes", reason="needs bitsandbytes: pip install 'lisan[qlora]'")
    folder = tmp_path_factory.mktemp("qlora")
    tuning = TuningConfig(
        method=Method.lora, rows=Rows.new, quantise_base=Quantisation.nf4, lora=replace(LORA, targets=("all",))
    )
    config = tuned_config(expanded, bases[True], tuning)
    runs = {"alone": train_alone(expanded, config, folder / "alone")}
    [runs["pair"]] = train_as_pair([make_job(expanded, config, folder / "pair")], folder / "pairs")
    return folder, (config, runs)


def test_adapters_over_four_bits_learn_the_same_on_two_workers(qlora: tuple[Path, Any]) -> None:
    folder, (_, runs) = qlora
    assert_same_run(runs["alone"], runs["pair"])
    assert runs["alone"].curve("loss")[-1] < runs["alone"].curve("loss")[0]
    assert largest_difference(weights(folder / "alone"), weights(folder / "pair")) < REORDERED_WEIGHT


def test_a_model_trained_over_four_bits_says_merged_what_it_said_in_training(
    qlora: tuple[Path, Any], expanded: Store, bases: dict[bool, str]
) -> None:
    """The weights of the last checkpoint over their 4-bit base, the merged folder, and base and adapter put together again."""
    folder, (config, _) = qlora
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


def test_what_merging_to_bfloat16_costs_is_measured_and_kept(
    qlora: tuple[Path, Any], expanded: Store, tmp_path: Path
) -> None:
    config = replace(qlora[1][0], save_precision=Precision.bfloat16)
    train_alone(expanded, config, tmp_path)
    said = json.loads((tmp_path / "model" / "adapter" / "quantised_base.json").read_bytes())
    exact = json.loads((qlora[0] / "alone" / "model" / "adapter" / "quantised_base.json").read_bytes())
    assert said["quantise_base"] == "nf4"
    assert 1e-7 < said["merged_kl_nats"] < MERGED_BF16_KL
    assert abs(exact["merged_kl_nats"]) < 1e-7


IN_BYTES = 1e-3
"Relative, five times what moments in bytes were measured to change in a loss of twelve steps."


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave the optimizer's step uncompiled, here and in processes that are started: compiling takes half a minute."""
    pytest.importorskip("torchao", reason="needs torchao: pip install 'lisan[int8]'")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "1")
    with torch._dynamo.config.patch(disable=True):
        yield


def bytes_config(store: Store, **changes: Any) -> Any:
    shape = ShapeConfig(num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1)
    model = ModelConfig(shape=shape, tokenizer="tokenizer/en@v1", init_std=0.2)
    return train_config(store, "en", model=model, loop={"num_steps": 12, "checkpoint_every": 6}, optim=changes)


def test_moments_in_bytes_learn_as_those_in_fp32_and_resume_bit_for_bit(
    eager: None, expanded: Store, tmp_path: Path
) -> None:
    whole = train_alone(expanded, bytes_config(expanded), tmp_path / "fp32")
    config = bytes_config(expanded, moments=MomentType.int8)
    found = train_alone(expanded, config, tmp_path / "int8")
    assert found.curve("loss") == pytest.approx(whole.curve("loss"), rel=IN_BYTES)
    assert found.curve("loss")[-1] != whole.curve("loss")[-1]
    assert found.curve("loss")[-1] < found.curve("loss")[0] - 0.5
    with pytest.raises(KilledError):
        train_alone(expanded, config, tmp_path / "cut", killed_at(6))
    train_alone(expanded, config, tmp_path / "cut")
    assert largest_difference(weights(tmp_path / "int8"), weights(tmp_path / "cut")) == 0
    sizes = [find_latest(Location(str(tmp_path / name / "checkpoints"))).num_bytes for name in ("fp32", "int8")]
    assert (
        sizes[1] < 0.7 * sizes[0]
    )  # 4 + 2 instead of 4 + 8 bytes a weight, and a table of 256 numbers for each matrix


def test_a_run_with_moments_in_bytes_goes_on_with_two_workers(eager: None, expanded: Store, tmp_path: Path) -> None:
    config = bytes_config(expanded, moments=MomentType.int8)
    alone = train_alone(expanded, config, tmp_path / "alone")
    with pytest.raises(KilledError):
        train_alone(expanded, config, tmp_path / "cut", killed_at(6))
    jobs = [make_job(expanded, config, tmp_path / name) for name in ("cut", "pair")]
    resumed, pair = train_as_pair(jobs, tmp_path / "pairs")
    assert pair.curve("loss") == pytest.approx(alone.curve("loss"), rel=IN_BYTES)
    assert resumed.curve("loss") == pytest.approx(alone.curve("loss")[6:], rel=IN_BYTES)


def test_rows_that_are_not_trained_stay_with_moments_in_bytes_too(
    eager: None, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    """A scale is over 256 numbers, which are rows of both kinds here."""
    config = tuned_config(expanded, bases[True], NEW_ROWS["embeddings"])
    config = replace(config, optim=replace(config.optim, moments=MomentType.int8))
    train_alone(expanded, config, tmp_path)
    name = "model.embed_tokens.weight"
    before, after = load_file(f"{bases[True]}/model.safetensors")[name], weights(tmp_path)[name]
    [manifest] = read_new_rows(tmp_path / "model")
    new, old = sorted(manifest.pieces), [row for row in range(len(before)) if row not in manifest.pieces]
    assert after.numel() % 256 == 0
    assert torch.equal(after[old], before[old])
    assert (after[new] != grown(bases[True], manifest)[name][new]).any(1).all()
