"""Laws of AdamW's moments in bytes: they learn as those in fp32 do, resume, and leave rows alone that are not trained."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import largest_difference, make_job, train_alone, train_as_pair, train_config, weights

from lisan.core.artifact import Store
from lisan.core.storage import Location
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.model.embeddings.new_rows import read_new_rows
from lisan.train.checkpoint.retention import find_latest
from lisan.train.options import MomentType

from .test_train import KilledError, killed_at
from .tuned import NEW_ROWS, grown, tuned_config

pytest.importorskip("torchao", reason="needs torchao: pip install -e '.[int8]'")

IN_BYTES = 1e-3
"Relative, five times what moments in bytes were measured to change in a loss of twelve steps."


def bytes_config(store: Store, **changes: Any) -> Any:
    shape = ShapeConfig(num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1)
    model = ModelConfig(shape=shape, tokenizer="tokenizer/en@v1", init_std=0.2)
    return train_config(store, "en", model=model, loop={"num_steps": 12, "checkpoint_every": 6}, optim=changes)


def test_moments_in_bytes_learn_as_those_in_fp32_and_resume_bit_for_bit(expanded: Store, tmp_path: Path) -> None:
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


@pytest.mark.slow
def test_a_run_with_moments_in_bytes_goes_on_with_two_workers(expanded: Store, tmp_path: Path) -> None:
    config = bytes_config(expanded, moments=MomentType.int8)
    alone = train_alone(expanded, config, tmp_path / "alone")
    with pytest.raises(KilledError):
        train_alone(expanded, config, tmp_path / "cut", killed_at(6))
    jobs = [make_job(expanded, config, tmp_path / name) for name in ("cut", "pair")]
    resumed, pair = train_as_pair(jobs, tmp_path / "pairs")
    assert pair.curve("loss") == pytest.approx(alone.curve("loss"), rel=IN_BYTES)
    assert resumed.curve("loss") == pytest.approx(alone.curve("loss")[6:], rel=IN_BYTES)


def test_rows_that_are_not_trained_stay_with_moments_in_bytes_too(
    expanded: Store, bases: dict[bool, str], tmp_path: Path
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
