"""Laws of sharding: how a model lies on its workers, loads, recomputes and compiles changes nothing but the order of sums."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from tiny import (
    SHAPE,
    Recorder,
    largest_difference,
    make_job,
    make_model,
    save_model,
    start_together,
    train_alone,
    train_as_pair,
    train_config,
    weights,
)
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from laws.test_train import REORDERED_LOSS, REORDERED_WEIGHT, assert_same_run
from lisan.cluster.config import Precision
from lisan.core.artifact import Ref, Store
from lisan.core.errors import ConfigError
from lisan.core.identity import fingerprint
from lisan.data.rows import RowReader
from lisan.model.adapters.lora import attach_adapter, read_adapter
from lisan.model.adapters.save_merged import write_config, write_weights
from lisan.model.attention import by_document
from lisan.model.config import ActivationCheckpointing, InitMethod, LoraConfig, ModelConfig, ShapeConfig, ShardingConfig
from lisan.model.embeddings.new_rows import NewRows, init_new_rows
from lisan.model.embeddings.resize import gather, is_tied
from lisan.model.load import load_model
from lisan.model.meta_model import load_embeddings, make_meta_model
from lisan.model.parallel.fsdp import check_sharding, prepare_block, shard
from lisan.model.score import Scorer, collate
from lisan.model.weights.load_shards import load_shards
from lisan.train.options import Method, TuningConfig

MESHES = {"1x4": 0, "2x2": 2, "4x1": 1}
"Groups x workers of a group, of four workers: how many hold a copy together. 1x2 is the law of two workers in test_train."
COMPILED_WEIGHT = 2e-4
"As REORDERED_WEIGHT; ten times more, because compiled kernels round every element otherwise, not only sums."


@pytest.fixture(scope="module")
def runs(
    tiny_store: Store, base_model: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Recorder]]:
    """The same run in one process and in four on every mesh."""
    folder = tmp_path_factory.mktemp("meshes")
    config = train_config(tiny_store, model=ModelConfig(path=base_model), loop={"micro_rows": 2})
    alone = train_alone(tiny_store, config, folder / "alone")
    jobs = [
        make_job(tiny_store, replace(config, sharding=ShardingConfig(shard_workers=group)), folder / name)
        for name, group in MESHES.items()
    ]
    told = train_as_pair(jobs, folder / "together", num_workers=4)
    return folder, {"alone": alone, **dict(zip(MESHES, told, strict=True))}


@pytest.mark.parametrize("mesh", MESHES)
def test_groups_that_hold_a_copy_each_do_what_one_process_does(
    mesh: str, runs: tuple[Path, dict[str, Recorder]]
) -> None:
    folder, found = runs
    assert_same_run(found["alone"], found[mesh])
    assert largest_difference(weights(folder / "alone"), weights(folder / mesh)) < REORDERED_WEIGHT


def test_a_run_of_groups_goes_on_in_one_process(
    tiny_store: Store, base_model: str, runs: tuple[Path, dict[str, Recorder]], tmp_path: Path
) -> None:
    folder, found = runs
    shutil.copytree(folder / "2x2" / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "step_00000006")
    config = train_config(tiny_store, model=ModelConfig(path=base_model), loop={"micro_rows": 2})
    resumed = train_alone(tiny_store, config, tmp_path)
    assert resumed.taken == [4, 5, 6]
    assert resumed.curve("loss") == pytest.approx(found["alone"].curve("loss")[3:], rel=REORDERED_LOSS)
    assert largest_difference(weights(folder / "alone"), weights(tmp_path)) < REORDERED_WEIGHT


def gradients(
    store: Store, activation_checkpointing: ActivationCheckpointing, dropout: float
) -> dict[str, torch.Tensor]:
    """Return the gradients of one batch of a tiny model with dropout in its adapters and its attention."""
    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t", init_std=0.5), 640, {}, seed=1)
    model.config.attention_dropout = dropout
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = dropout
    torch.manual_seed(2)
    attach_adapter(model, LoraConfig(rank=4, dropout=dropout))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    for layer in model.model.layers:
        prepare_block(layer, ShardingConfig(activation_checkpointing=activation_checkpointing))
    rows = RowReader(store.open(Ref.parse("tokens/documents@v1"))).read(range(4))
    scorer = Scorer(model).train()
    torch.manual_seed(3)
    (-scorer(collate(rows.input_ids, rows.labels, rows.doc_lens)).mean()).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("activation_checkpointing", [ActivationCheckpointing.selective, ActivationCheckpointing.full])
def test_recomputing_changes_no_bit_of_any_gradient(
    activation_checkpointing: ActivationCheckpointing, dropout: float, tiny_store: Store
) -> None:
    kept = gradients(tiny_store, ActivationCheckpointing.none, dropout)
    again = gradients(tiny_store, activation_checkpointing, dropout)
    assert len(kept) > 20
    assert kept.keys() == again.keys()
    assert all(torch.equal(kept[name], again[name]) for name in kept)


class Calls(TorchDispatchMode):
    """Counts what torch computes."""

    def __init__(self) -> None:
        super().__init__()
        self.number: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.number[func.name().removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))


def test_products_are_computed_again_by_full_and_kept_by_selective(
    tiny_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(by_document, "SHORT", 0)  # so that attention is one call a bucket
    number = {}
    for activation_checkpointing in ActivationCheckpointing:
        with Calls() as calls:
            gradients(tiny_store, activation_checkpointing, 0.0)
        number[activation_checkpointing] = calls.number
    none, selective, full = (number[which] for which in ActivationCheckpointing)
    assert none["silu"] == SHAPE.num_layers
    assert selective["silu"] == full["silu"] == 2 * SHAPE.num_layers
    assert selective["mm"] == none["mm"] < full["mm"]
    attention = next(name for name in none if name.startswith("_scaled_dot_product") and "backward" not in name)
    assert selective[attention] == none[attention] >= SHAPE.num_layers
    assert full[attention] == 2 * none[attention]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
def test_compiled_blocks_train_as_plain_ones_do(tiny_store: Store, base_model: str, tmp_path: Path) -> None:
    config = train_config(tiny_store, model=ModelConfig(path=base_model), loop={"num_steps": 3})
    whole = train_alone(tiny_store, config, tmp_path / "plain")
    sharding = ShardingConfig(compile=True, activation_checkpointing=ActivationCheckpointing.selective)
    assert_same_run(whole, train_alone(tiny_store, replace(config, sharding=sharding), tmp_path / "compiled"))
    assert largest_difference(weights(tmp_path / "plain"), weights(tmp_path / "compiled")) < COMPILED_WEIGHT


BIG = ShapeConfig(
    num_layers=20, hidden_size=256, intermediate_size=1024, num_heads=4, num_kv_heads=2, tie_embeddings=False
)
"20 M parameters in many small tensors: 80 MB in fp32."


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes loaded from folders of models, whole and by shards, and what they wrote again."""
    folder = tmp_path_factory.mktemp("loaded")
    for tie in (True, False):
        shape = replace(SHAPE, tie_embeddings=tie)
        model = make_model(ModelConfig(shape=shape, tokenizer="t", init_std=0.3), 101, {"pad_token_id": 7}, seed=4)
        save_model(model, folder / NAMES[tie], torch.bfloat16)
    save_model(make_model(ModelConfig(shape=BIG, tokenizer="t"), 640, {}, seed=5), folder / "big", torch.bfloat16)
    start_together(_load_and_write, (str(folder),), folder / "together")
    return folder


NAMES = {True: "tied", False: "untied"}
PEAK = Path("/proc/self/clear_refs")
EXPANDED = {105: (1, 2, 3), 110: (4,)}


def _load_and_write(place: str) -> None:
    """Be one of two processes: load by shards, remember what was loaded, write it again; then measure a larger model."""
    folder = Path(place)
    for name in NAMES.values():
        for grows in (False, True):
            model, sources = make_meta_model(str(folder / name))
            if grows:
                load_embeddings(model, sources)
                init_new_rows(model, recipe())
            scorer = shard(Scorer(model), "cpu", Precision.float32)
            load_shards(model, sources)
            state = {key: gather(parameter) for key, parameter in model.named_parameters(remove_duplicate=False)}
            out = folder / f"{name}-{grows}" if dist.get_rank() == 0 else None
            if out is not None:
                out.mkdir()
                torch.save((state, is_tied(model), dict(model.named_buffers())), out / "state.pt")
                write_config(model, out, torch.float32)
            write_weights(model, out, torch.float32, max_bytes=20_000)
            assert all(isinstance(parameter, DTensor) for parameter in scorer.parameters())
    if PEAK.exists():
        _measure(folder / "big", folder / f"big-{dist.get_rank()}.json")


def recipe() -> NewRows:
    return NewRows(
        method=InitMethod.mean,
        tokenizer_hash="t",
        base_tokenizer_hash="b",
        rows_after=112,
        num_old=101,
        pieces=EXPANDED,
    )


def _measure(place: Path, out: Path) -> None:
    """Write how far loading and writing a model by shards, and loading it whole, raised this process's memory at most."""
    found = {"by shards": _memory("VmRSS")}
    model, sources = make_meta_model(str(place))
    scorer = shard(Scorer(model), "cpu", Precision.float32)
    load_shards(model, sources)
    found["by shards"] = _memory("VmHWM") - found["by shards"]
    folder = place.parent / "big-again"
    folder.mkdir(exist_ok=True)
    found["written"] = _memory("VmRSS")
    write_weights(model, folder if dist.get_rank() == 0 else None, torch.bfloat16, max_bytes=8_000_000)
    found["written"] = _memory("VmHWM") - found["written"]
    found["weights"] = 4 * sum(parameter.numel() for parameter in scorer.parameters())
    found["whole"] = _memory("VmRSS")
    shard(Scorer(load_model(str(place))), "cpu", Precision.float32)
    found["whole"] = _memory("VmHWM") - found["whole"]
    out.write_text(json.dumps(found))


def _memory(name: str) -> int:
    """Return the bytes that Linux gives by that name, and begin anew with the peak. (getrusage begins with the parent's.)"""
    lines = Path("/proc/self/status").read_text().splitlines()
    PEAK.write_text("5")
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(name))


@pytest.mark.parametrize("grows", [False, True], ids=["as it is", "grown"])
@pytest.mark.parametrize("tie", [True, False], ids=NAMES.values())
def test_shards_that_each_process_reads_are_the_whole_model_bit_for_bit(tie: bool, grows: bool, loaded: Path) -> None:
    whole = load_model(str(loaded / NAMES[tie]))
    if grows:
        init_new_rows(whole, recipe())
    state, tied, buffers = torch.load(loaded / f"{NAMES[tie]}-{grows}" / "state.pt")
    wanted = dict(whole.named_parameters(remove_duplicate=False))
    assert tied is is_tied(whole) is tie
    assert wanted.keys() == state.keys()
    assert all(torch.equal(wanted[name], state[name]) for name in wanted)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in whole.named_buffers())


@pytest.mark.parametrize("tie", [True, False], ids=NAMES.values())
def test_what_is_written_tensor_by_tensor_is_read_back_the_same(tie: bool, loaded: Path) -> None:
    folder = loaded / f"{NAMES[tie]}-True"
    files = sorted(file.name for file in folder.glob("model-*.safetensors"))
    assert len(files) > 2
    assert set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()) == set(files)
    state, _, _ = torch.load(folder / "state.pt")
    again = load_model(str(folder))
    assert all(torch.equal(parameter, state[name]) for name, parameter in again.named_parameters())
    assert again.config.vocab_size == 112


@pytest.mark.skipif(not PEAK.exists(), reason="reads the peak of memory from Linux")
def test_no_process_ever_holds_the_whole_model(loaded: Path) -> None:
    """Each holds its half of the weights and the pages of the file that it reads; the first also the tensors of one file."""
    for rank in range(2):
        told = json.loads((loaded / f"big-{rank}.json").read_text())
        assert told["by shards"] < 0.8 * told["whole"], told
        assert told["written"] < 0.5 * told["weights"], told


def test_an_outline_takes_no_memory_and_computes_its_buffers(loaded: Path) -> None:
    model, sources = make_meta_model(str(loaded / "tied"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert len(sources) == 1
    assert not model.training


def test_files_that_name_their_tensors_otherwise_are_loaded_whole(loaded: Path, tmp_path: Path) -> None:
    shutil.copytree(loaded / "untied", tmp_path / "other")
    state = load_file(tmp_path / "other" / "model.safetensors")
    state["model.extra.inv_freq"] = torch.zeros(3)
    save_file(state, tmp_path / "other" / "model.safetensors", metadata={"format": "pt"})
    model, sources = make_meta_model(str(tmp_path / "other"))
    assert not sources
    assert not any(parameter.is_meta for parameter in model.parameters())


def test_shards_written_by_one_adapter_run_hold_what_peft_merges(
    tiny_store: Store, base_model: str, tmp_path: Path
) -> None:
    tuning = TuningConfig(method=Method.lora, lora=LoraConfig(rank=4, dropout=0.2))
    config = train_config(tiny_store, "conversations", model=ModelConfig(path=base_model), tuning=tuning)
    train_alone(tiny_store, config, tmp_path)
    merged = read_adapter(load_model(base_model), tmp_path / "model" / "adapter").merge_and_unload()
    written = weights(tmp_path)
    assert all(torch.equal(parameter, written[name]) for name, parameter in merged.named_parameters())


def test_groups_that_do_not_divide_the_workers_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"sharding.shard_workers \(3\) must divide the number of workers \(8\)"):
        check_sharding(ShardingConfig(shard_workers=3), 8)
    with pytest.raises(ConfigError, match="shard_workers must be >= 0"):
        ShardingConfig(shard_workers=-1)
    check_sharding(ShardingConfig(), 32, num_nodes=4)


def test_how_a_model_lies_is_not_part_of_its_identity(tiny_store: Store) -> None:
    config = train_config(tiny_store)
    other = replace(
        config,
        sharding=ShardingConfig(shard_workers=1, activation_checkpointing=ActivationCheckpointing.full, compile=True),
    )
    assert fingerprint(config) == fingerprint(other)
