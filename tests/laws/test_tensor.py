"""Laws of tensor parallelism: workers that compute each block together do what one does, up to the order of sums."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from tiny import (
    LOOP,
    SHAPE,
    Recorder,
    encode,
    largest_difference,
    make_job,
    read_run,
    start_together,
    train_all,
    train_alone,
    train_config,
    weights,
)
from torch.distributed.tensor import DTensor

from laws.test_train import REORDERED_LOSS, REORDERED_WEIGHT, assert_same_run
from lisan.cluster.config import Precision
from lisan.core.artifact import Store
from lisan.core.errors import ConfigError
from lisan.core.stage import ClusterConfig
from lisan.core.storage import Location
from lisan.model.config import ActivationCheckpointing, ModelConfig, ShardingConfig
from lisan.model.embeddings.resize import gather
from lisan.model.load import load_model
from lisan.model.meta_model import make_meta_model
from lisan.model.parallel.fsdp import check_sharding, shard
from lisan.model.parallel.tensor_parallel import check_tensor_parallel
from lisan.model.score import Scorer
from lisan.model.weights.load_shards import load_shards
from lisan.records.kinds import RecordKind
from lisan.train.checkpoint.retention import find_latest
from lisan.train.launch_checks import check
from lisan.train.loop import check_rows
from lisan.train.options import Method, MomentType, TuningConfig, ValidationConfig
from lisan.train.run import TrainJob
from lisan.train.setup.tensor_parallel_checks import check_model

PAIR = ShardingConfig(tensor_parallel_size=2)
GROUPS = ShardingConfig(shard_workers=2, tensor_parallel_size=2, activation_checkpointing=ActivationCheckpointing.full)
"Of four workers 0, 1 hold a copy together, and 2, 3."
WIDTH = replace(SHAPE, hidden_size=24, intermediate_size=54, num_heads=4, num_kv_heads=2)
"Heads and an inner width that two workers share evenly, and 27 rows for each that two shards cannot."
BASES = ("tied", "untied", "normed")
CASES = {
    2: {f"{base} 1x2": PAIR for base in BASES} | {"preferences 1x2": PAIR, "resumed 1x2": PAIR},
    4: {f"{base} 2x2": PAIR for base in BASES} | {"untied 2x1x2": GROUPS},
}
"By number of workers: what is trained and the mesh, groups x shards x workers to a block."


def config_of(store: Store, folder: Path, name: str, **changes: Any) -> Any:
    what = name.split(maxsplit=1)[0]
    base = {"preferences": "untied", "resumed": "untied"}.get(what, what)
    kind = "preferences" if what == "preferences" else "documents"
    held_out = {} if kind == "preferences" else {"validation": ValidationConfig(tokens=HELD_OUT, num_rows=9)}
    model = ModelConfig(path=str(folder / f"base {base}" / "model"))
    return train_config(store, kind, model=model, loop={"micro_rows": 2}, **held_out, **changes)


HELD_OUT = "tokens/conversations@v1"


def make_bases(store: Store, folder: Path) -> None:
    """Leave three models that have seen a step: Llamas, and a Qwen 3, which norms its queries and keys."""
    for tie in (True, False):
        model = ModelConfig(shape=replace(WIDTH, tie_embeddings=tie), tokenizer="tokenizer/tiny@v1", init_std=0.2)
        train_alone(store, train_config(store, model=model, loop={"num_steps": 1}), folder / f"base {BASES[not tie]}")
    from transformers import Qwen3Config, Qwen3ForCausalLM

    place = folder / "base normed" / "model"
    shutil.copytree(folder / "base tied" / "model", place)
    torch.manual_seed(6)
    config = Qwen3Config(
        vocab_size=load_model(str(place)).config.vocab_size,
        hidden_size=24,
        intermediate_size=54,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=128,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    Qwen3ForCausalLM(config).save_pretrained(place)


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Recorder]]:
    """The same runs in one process, in two that split its blocks, and in four."""
    folder = tmp_path_factory.mktemp("tensor")
    make_bases(tiny_store, folder)
    found = {
        name: train_alone(tiny_store, config_of(tiny_store, folder, name), folder / name)
        for name in (*BASES, "preferences")
    }
    go_on_from(folder / "untied", folder / "resumed 1x2")
    for number, cases in CASES.items():
        jobs = [
            make_job(tiny_store, config_of(tiny_store, folder, name, sharding=sharding), folder / name)
            for name, sharding in cases.items()
        ]
        told = folder / f"of {number}"
        start_together(_load_and_train, (str(folder / "base untied" / "model"), jobs, str(told)), told, number)
        found |= {name: read_run(told / f"{index}.json") for index, name in enumerate(cases)}
    return folder, found


def _load_and_train(place: str, jobs: list[TrainJob], folder: str) -> None:
    """Be one of the processes: load a model by shares of shards, remember what was loaded, then train."""
    model, sources = make_meta_model(place)
    shard(Scorer(model), "cpu", Precision.float32, PAIR)
    load_shards(model, sources)
    split = model.model.layers[0].mlp.up_proj.weight
    assert isinstance(split, DTensor)
    assert split.device_mesh.ndim == 2
    state = {name: gather(parameter) for name, parameter in model.named_parameters()}
    if dist.get_rank() == 0:
        torch.save(state, Path(folder, "state.pt"))
    train_all(jobs, folder)


def go_on_from(run: Path, other: Path) -> None:
    """Leave another run the first checkpoint of one."""
    shutil.copytree(run / "checkpoints", other / "checkpoints")
    shutil.rmtree(other / "checkpoints" / "step_00000006")


def books(folder: Path) -> tuple[Any, ...]:
    latest = find_latest(Location(str(folder)) / "checkpoints")
    assert latest is not None
    return latest.step, latest.facts["rows_hash"], latest.facts["read"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for cases in CASES.values() for name in cases if "resumed" not in name])
def test_workers_that_split_blocks_do_what_one_process_does(name: str, runs: tuple[Path, dict[str, Recorder]]) -> None:
    folder, found = runs
    alone = name.split(maxsplit=1)[0]
    assert_same_run(found[alone], found[name])
    assert largest_difference(weights(folder / alone), weights(folder / name)) < REORDERED_WEIGHT
    assert books(folder / alone) == books(folder / name)
    for step in () if alone == "preferences" else (3, 6):
        losses = [found[run].steps[step]["validation/loss"] for run in (alone, name)]
        assert losses[0] == pytest.approx(losses[1], rel=REORDERED_LOSS)


@pytest.mark.slow
def test_a_run_of_one_process_goes_on_in_workers_that_split_its_blocks(
    runs: tuple[Path, dict[str, Recorder]],
) -> None:
    folder, found = runs
    assert found["resumed 1x2"].taken == [4, 5, 6]
    assert found["resumed 1x2"].curve("loss") == pytest.approx(found["untied"].curve("loss")[3:], rel=REORDERED_LOSS)
    assert largest_difference(weights(folder / "untied"), weights(folder / "resumed 1x2")) < REORDERED_WEIGHT
    assert books(folder / "untied") == books(folder / "resumed 1x2")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tied 1x2", "untied 2x2", "untied 2x1x2"])
def test_a_run_of_workers_that_split_blocks_goes_on_in_one_process(
    name: str, tiny_store: Store, runs: tuple[Path, dict[str, Recorder]], tmp_path: Path
) -> None:
    folder, found = runs
    alone = name.split(maxsplit=1)[0]
    go_on_from(folder / name, tmp_path)
    resumed = train_alone(tiny_store, config_of(tiny_store, folder, alone), tmp_path)
    assert resumed.taken == [4, 5, 6]
    assert resumed.curve("loss") == pytest.approx(found[alone].curve("loss")[3:], rel=REORDERED_LOSS)
    assert largest_difference(weights(folder / alone), weights(tmp_path)) < REORDERED_WEIGHT
    assert books(folder / alone) == books(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("number", CASES)
def test_shares_that_each_process_reads_are_the_whole_model_bit_for_bit(
    number: int, runs: tuple[Path, dict[str, Recorder]]
) -> None:
    """Of four workers two shard the 27 rows that a share of the MLP has: 14 and 13."""
    state = torch.load(runs[0] / f"of {number}" / "state.pt")
    wanted = dict(load_model(str(runs[0] / "base untied" / "model")).named_parameters())
    assert wanted.keys() == state.keys()
    assert all(torch.equal(wanted[name], state[name]) for name in wanted)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"tuning": TuningConfig(method=Method.lora)},
            "tuning.method=lora is not possible with sharding.tensor_parallel_size=2",
        ),
        (
            {"precision": Precision.bfloat16, "float8": True},
            "float8=true is not possible with sharding.tensor_parallel_size=2",
        ),
        (
            {"optim": {"moments": MomentType.int8}},
            "optim.moments=int8 is not possible with sharding.tensor_parallel_size=2",
        ),
    ],
)
def test_what_has_not_been_seen_to_be_right_in_split_blocks_is_refused(
    changes: dict[str, Any], said: str, tiny_store: Store, base_model: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        train_config(tiny_store, model=ModelConfig(path=base_model), sharding=PAIR, **changes)


def test_groups_that_cannot_be_formed_are_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"sharding.tensor_parallel_size \(2\) must divide the workers that hold a copy .* \(3\)"
    ):
        check_sharding(PAIR, 3)
    with pytest.raises(ConfigError, match="tensor_parallel_size must be >= 1, got 0"):
        ShardingConfig(tensor_parallel_size=0)
    with pytest.raises(ConfigError, match=r"compile=true is not possible with sharding\.tensor_parallel_size=2"):
        ShardingConfig(tensor_parallel_size=2, compile=True)
    with pytest.raises(
        ConfigError, match=r"loop.step_rows \(8\) must be a multiple .* \(6 / sharding.tensor_parallel_size=2\)"
    ):
        check_rows(LOOP, 6, 2)
    check_rows(LOOP, 16, 2)


def test_rows_that_each_worker_would_make_for_all_are_refused(tiny_store: Store, tmp_path: Path) -> None:
    shutil.copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    encode(store, RecordKind.documents, name="made", store_rows=False)
    cluster = ClusterConfig(num_workers=2)
    config = train_config(store, sharding=PAIR, cluster=cluster)
    with pytest.raises(ConfigError, match=r"tokens/made@v1 stores no rows .*tensor_parallel_size=2 .*store_rows=true"):
        check(replace(config, tokens="tokens/made@v1"), store)


def test_models_that_cannot_be_split_are_refused(tiny_store: Store, base_model: str) -> None:
    given = train_config(tiny_store, model=ModelConfig(path=base_model), sharding=PAIR)
    drawn = train_config(tiny_store, sharding=PAIR)
    for config, key in ((given, "num_key_value_heads"), (drawn, "shape.num_kv_heads")):
        with pytest.raises(ConfigError, match=rf"tensor_parallel_size \(2\) must divide the model's {key} \(1\)"):
            check_model(config, ())
    model = load_model(base_model)
    model.config.attention_dropout = 0.1
    with pytest.raises(ConfigError, match=r"attention_dropout=0\.1 would drop the same positions"):
        check_tensor_parallel(model, 1)
    model.config.base_model_tp_plan = {"layers.*.mlp.up_proj": "colwise_gather_output"}
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM wants mlp.up_proj colwise_gather_output"):
        check_tensor_parallel(model, 1)
    model.config.base_model_tp_plan = {"layers.*.mlp.up_proj": "colwise", "layers.*.mlp.down_proj": "rowwise"}
    with pytest.raises(ConfigError, match=r"LlamaForCausalLM does not define the split of mlp\.gate_proj between them"):
        check_tensor_parallel(model, 1)
    model.config.base_model_tp_plan = None
    with pytest.raises(ConfigError, match="LlamaForCausalLM does not say how its blocks are split"):
        check_tensor_parallel(model, 1)
