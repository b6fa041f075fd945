"""Laws of tensor parallelism: workers that compute each block together do what one does, up to the order of sums."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import SHAPE, Recorder, largest_difference, make_job, train_alone, train_as_pair, train_config, weights

from laws.test_train import REORDERED_WEIGHT, assert_same_run
from lisan.core.artifact import Store
from lisan.core.storage import Location
from lisan.model.load import ModelConfig
from lisan.model.parallel import Recompute, ShardingConfig
from lisan.train.checkpoint import find_latest

PAIR = ShardingConfig(tensor_workers=2)
FOUR = {
    "2x2": ShardingConfig(tensor_workers=2),
    "2x1x2": ShardingConfig(shard_workers=2, tensor_workers=2, recompute=Recompute.full),
}
"Groups that hold a copy x shards x workers that split blocks, of four workers."
TIES = {"tied": True, "untied": False}


def config_of(store: Store, tie: bool, kind: str = "documents", **changes: Any) -> Any:
    """Heads and a width that two workers can share, and rows of weights that two shards cannot share evenly."""
    shape = replace(SHAPE, hidden_size=24, intermediate_size=54, num_heads=4, num_kv_heads=2, tie_embeddings=tie)
    model = ModelConfig(shape=shape, tokenizer="tokenizer/tiny@v1", init_std=0.2)
    return train_config(store, kind, **{"model": model, "loop": {"micro_rows": 2}, **changes})


@pytest.fixture(scope="module")
def runs(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Recorder]]:
    """The same runs in one process, in two that split its blocks, and in four."""
    folder = tmp_path_factory.mktemp("tensor")
    found: dict[str, Recorder] = {}
    for name, tie in TIES.items():
        found[name] = train_alone(tiny_store, config_of(tiny_store, tie), folder / name)
    for number, shardings in ((2, {"1x2": PAIR}), (4, FOUR)):
        names = [(f"{name} {mesh}", tie, mesh) for name, tie in TIES.items() for mesh in shardings]
        jobs = [
            make_job(tiny_store, config_of(tiny_store, tie, sharding=shardings[mesh]), folder / name)
            for name, tie, mesh in names
        ]
        told = train_as_pair(jobs, folder / f"of {number}", num_workers=number)
        found |= {name: run for (name, _, _), run in zip(names, told, strict=True)}
    return folder, found


def books(folder: Path) -> tuple[Any, ...]:
    latest = find_latest(Location(str(folder)) / "checkpoints")
    assert latest is not None
    return latest.step, latest.facts["rows_hash"], latest.facts["read"]


@pytest.mark.parametrize("mesh", ["1x2", *FOUR])
@pytest.mark.parametrize("name", TIES)
def test_workers_that_split_blocks_do_what_one_process_does(
    name: str, mesh: str, runs: tuple[Path, dict[str, Recorder]]
) -> None:
    folder, found = runs
    assert_same_run(found[name], found[f"{name} {mesh}"])
    assert largest_difference(weights(folder / name), weights(folder / f"{name} {mesh}")) < REORDERED_WEIGHT
    assert books(folder / name) == books(folder / f"{name} {mesh}")
