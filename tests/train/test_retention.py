"""Resumable state: the mark, the latest, what is kept, what is refused."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from tiny import ALONE, SHAPE, make_model

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup
from lisan.core.errors import TrainingError
from lisan.core.storage import Location
from lisan.model.config import ModelConfig
from lisan.model.parallel.fsdp import shard
from lisan.model.score import Scorer
from lisan.train.checkpoint import retention, sharded_state
from lisan.train.optim import make_optimizer
from lisan.train.options import OptimConfig


@pytest.fixture(autouse=True)
def _group() -> Iterator[None]:
    with ProcessGroup(ALONE):
        yield


def trained(seed: int = 0, **shape: Any) -> tuple[Scorer, torch.optim.AdamW]:
    """Return a sharded model and an optimizer that has made a step."""
    from dataclasses import replace

    config = ModelConfig(shape=replace(SHAPE, **shape), tokenizer="t")
    scorer = shard(Scorer(make_model(config, 64, {}, seed)), "cpu", Precision.float32)
    optimizer = make_optimizer(scorer, OptimConfig(peak_lr=0.1))
    torch.manual_seed(seed)
    for parameter in scorer.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return scorer, optimizer


def state(scorer: Scorer, optimizer: torch.optim.AdamW) -> list[torch.Tensor]:
    """Return weights and both moments as plain tensors."""
    weights = [parameter.full_tensor() for parameter in scorer.parameters()]  # type: ignore[attr-defined]
    moments = [
        optimizer.state[p][name].full_tensor() for p in scorer.parameters() for name in ("exp_avg", "exp_avg_sq")
    ]
    steps = [optimizer.state[p]["step"] for p in scorer.parameters()]
    return [*weights, *moments, *steps]


def save(
    scorer: Scorer,
    optimizer: torch.optim.AdamW,
    step: int,
    folder: Location,
    facts: Mapping[str, Any] = MappingProxyType({}),
) -> retention.Checkpoint:
    return sharded_state.write(sharded_state.take_state(scorer, optimizer), step, folder, facts)


@pytest.fixture
def folder(tmp_path: Path) -> Location:
    return Location(str(tmp_path)) / "checkpoints"


def test_what_is_saved_is_loaded_bit_for_bit(folder: Location) -> None:
    scorer, optimizer = trained(seed=1)
    saved = save(scorer, optimizer, 7, folder)
    other, other_optimizer = trained(seed=2)
    sharded_state.load(other, other_optimizer, saved)
    for one, two in zip(state(scorer, optimizer), state(other, other_optimizer), strict=True):
        assert torch.equal(one, two)


def test_a_fresh_optimizer_takes_the_saved_moments(folder: Location) -> None:
    scorer, optimizer = trained(seed=1)
    saved = save(scorer, optimizer, 1, folder)
    other, _ = trained(seed=2)
    fresh = make_optimizer(other, OptimConfig(peak_lr=0.1))
    sharded_state.load(other, fresh, saved)
    for one, two in zip(state(scorer, optimizer), state(other, fresh), strict=True):
        assert torch.equal(one, two)


def test_the_latest_finished_checkpoint_is_found(folder: Location) -> None:
    assert retention.find_latest(folder) is None
    assert retention.next_start(folder) == (0, 0)
    scorer, optimizer = trained()
    for step in (5, 100, 20):
        (folder / f"step_{step:08d}" / "checkpoint.json").write_json(
            {"step": step, "bytes": 1, "sha256": "x", "position": 8 * step}
        )
    assert retention.next_start(folder) == (100, 800)
    assert save(scorer, optimizer, 101, folder, {"position": 808}).step == 101
    assert retention.next_start(folder) == (101, 808)


def test_a_checkpoint_without_its_mark_is_ignored_and_overwritten(folder: Location) -> None:
    (folder / "step_00000009" / "leftover").write_bytes(b"half")
    assert retention.next_start(folder) == (0, 0)
    scorer, optimizer = trained()
    saved = save(scorer, optimizer, 9, folder)
    assert not (saved.location / "leftover").exists()


def test_the_mark_is_written_last_with_hashes_of_all_files(folder: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(place: Location, value: Any) -> None:
        raise KeyboardInterrupt

    scorer, optimizer = trained()
    with monkeypatch.context() as patch:
        patch.setattr(Location, "write_json", dies)
        with pytest.raises(KeyboardInterrupt):
            save(scorer, optimizer, 3, folder)
    assert len(list((folder / "step_00000003").walk())) >= 2
    assert retention.find_latest(folder) is None
    saved = save(scorer, optimizer, 3, folder)
    mark = json.loads((saved.location / "checkpoint.json").read_bytes())
    files = {
        file.relative_to(saved.location): size for file, size in saved.location.walk() if file.name != "checkpoint.json"
    }
    assert {name: facts["bytes"] for name, facts in mark["files"].items()} == files
    assert saved.num_bytes == sum(files.values())
    assert saved.digest == mark["sha256"]


def test_facts_are_kept_beside_the_state_and_change_nothing_in_it(folder: Location) -> None:
    scorer, optimizer = trained()
    plain = save(scorer, optimizer, 1, folder)
    saved = save(scorer, optimizer, 2, folder, {"read": {"ar": {"rows": 3}}})
    assert "read" not in plain.facts
    assert saved.facts["read"] == {"ar": {"rows": 3}}
    found = retention.find_latest(folder)
    assert found == saved
    sharded_state.load(scorer, optimizer, saved)


def test_the_digest_is_of_the_contents(folder: Location) -> None:
    names = {"a": {"sha256": "1"}, "b": {"sha256": "2"}}
    assert sharded_state._digest(names) == sharded_state._digest(dict(reversed(names.items())))
    assert sharded_state._digest(names) != sharded_state._digest({"a": {"sha256": "2"}, "b": {"sha256": "1"}})


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("__0_0.distcp", lambda data: data[:-7], "bytes where "),
        ("__0_0.distcp", lambda data: data[:-7] + b"flipped", "is not what was written"),
        ("checkpoint.json", lambda data: data[:-7], r"checkpoint\.json is cut off"),
        ("__0_0.distcp", None, r"distcp is missing"),
    ],
)
def test_a_run_goes_on_from_the_last_checkpoint_that_is_whole(
    name: str, change: Any, said: str, folder: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    scorer, optimizer = trained()
    for step in (10, 20):
        save(scorer, optimizer, step, folder)
    retention.drop_damaged(folder)
    assert capsys.readouterr().out == ""
    file = folder / "step_00000020" / name
    if change is None:
        file.delete()
    else:
        file.write_bytes(change(file.read_bytes()))
    retention.drop_damaged(folder)
    [line] = capsys.readouterr().out.splitlines()
    assert re.fullmatch(rf"  checkpoint step_00000020 is damaged: .*{said}.*; the run goes on from step 10", line)
    latest = retention.find_latest(folder)
    assert latest is not None
    assert latest.step == 10
    sharded_state.load(scorer, optimizer, latest)


def test_a_run_whose_only_checkpoint_is_damaged_begins_anew(
    folder: Location, capsys: pytest.CaptureFixture[str]
) -> None:
    file = save(*trained(), 10, folder).location / "__0_0.distcp"
    file.write_bytes(b"")
    retention.drop_damaged(folder)
    assert "has 0 bytes where" in (line := capsys.readouterr().out)
    assert line.endswith("; the run begins anew, for there is no other\n")
    assert retention.find_latest(folder) is None


def test_old_and_unfinished_checkpoints_go(folder: Location) -> None:
    for step in (10, 20, 30, 40):
        (folder / f"step_{step:08d}" / "checkpoint.json").write_json({})
    (folder / "step_00000035" / "half").write_bytes(b"1")
    (folder / "reference.json").write_bytes(b"{}")
    retention.remove_old(folder, keep=2)
    assert [place.name for place in folder.list()] == ["reference.json", "step_00000030", "step_00000040"]


def test_a_checkpoint_of_another_shape_is_one_sentence(folder: Location) -> None:
    saved = save(*trained(), 4, folder)
    with pytest.raises(TrainingError, match=r"step_00000004 does not fit this model or is damaged.*delete it"):
        sharded_state.load(*trained(hidden_size=64), saved)


def test_a_damaged_checkpoint_is_a_training_error(folder: Location) -> None:
    saved = save(*trained(), 4, folder)
    for file, _ in saved.location.walk():
        if file.name.endswith(".distcp"):
            file.write_bytes(b"rubbish")
    with pytest.raises(TrainingError, match="damaged"):
        sharded_state.load(*trained(), saved)
