"""Resumable state on storage: weights, optimizer and one integer, the next step; beside it what the run has read.

In: a sharded model and its optimizer. Out: `step_00000100/` with DCP shards and `checkpoint.json`, written last.
Always: a folder without `checkpoint.json` is ignored and overwritten; loading works on another number of workers;
every rank writes its own.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.optim import Optimizer

from lisan.core.artifact import hash_file
from lisan.core.errors import TrainingError
from lisan.core.storage import Location, writing
from lisan.model.score import Scorer

MARK = "checkpoint.json"
OPTIONS = StateDictOptions(ignore_frozen_params=True)


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint."""

    step: int
    location: Location
    num_bytes: int
    digest: str
    facts: dict[str, Any]
    "What was saved with it: all that `checkpoint.json` holds."

    @property
    def position(self) -> int:
        """Where the data of the run goes on."""
        if "position" not in self.facts:
            raise TrainingError(f"checkpoint {self.location} does not say what was read; delete it to begin anew")
        return int(self.facts["position"])


def find_latest(folder: Location) -> Checkpoint | None:
    """Return the finished checkpoint with the highest step."""
    for place in reversed(folder.list()):
        if place.name.startswith("step_") and (place / MARK).exists():
            facts = (place / MARK).read_json()
            return Checkpoint(facts["step"], place, facts["bytes"], facts["sha256"], facts)
    return None


def next_start(folder: Location) -> tuple[int, int]:
    """Return the step at which a run in that folder goes on, and the position of its data there."""
    latest = find_latest(folder)
    return (0, 0) if latest is None else (latest.step, latest.position)


def save(
    scorer: Scorer, optimizer: Optimizer, step: int, folder: Location, facts: Mapping[str, Any] | None = None
) -> Checkpoint:
    """Write the state after `step` steps, and facts beside it; every rank calls it and returns when all is complete."""
    place = folder / f"step_{step:08d}"
    model_state, optimizer_state = get_state_dict(scorer, optimizer, options=OPTIONS)
    with writing(place, "the checkpoint"), _workspace(place) as local:
        _save_shards({"model": model_state, "optimizer": optimizer_state}, local)
        if not place.is_local:
            place.upload(local)
    dist.barrier()
    if dist.get_rank() == 0:
        files = {file.relative_to(place): {"bytes": size, "sha256": hash_file(file)} for file, size in place.walk()}
        digest = _digest(files)
        (place / MARK).write_json(
            {
                "step": step,
                **(facts or {}),
                "bytes": sum(f["bytes"] for f in files.values()),
                "sha256": digest,
                "files": files,
            }
        )
    dist.barrier()
    found = find_latest(folder)
    assert found is not None
    assert found.step == step
    return found


def _save_shards(state: dict[str, Any], folder: Path) -> None:
    try:
        dcp.save(state, checkpoint_id=folder)
    except CheckpointException as error:  # a BaseException, which nobody else would catch
        raise OSError(_reason(error)) from error


def load(scorer: Scorer, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Put the state of a checkpoint into the model and the optimizer, whatever number of workers wrote it."""
    model_state, optimizer_state = get_state_dict(scorer, optimizer, options=OPTIONS)
    state: dict[str, Any] = {"model": model_state, "optimizer": optimizer_state}
    try:
        dcp.load(state, checkpoint_id=checkpoint.location.local_folder())
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise TrainingError(
            f"checkpoint {checkpoint.location} does not fit this model or is damaged: {_reason(error)}; "
            "delete it to go on from the one before"
        ) from error
    set_state_dict(
        scorer,
        optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
        options=StateDictOptions(ignore_frozen_params=True, strict=False),
    )


def _reason(error: BaseException) -> str:
    """Return the first line of what the first rank that failed raised."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    first = next((failure for failure, _ in failures.values()), error)
    return next(iter(str(first).splitlines()), "") or type(first).__name__


def remove_old(folder: Location, keep: int) -> None:
    """Delete all but the `keep` latest checkpoints, and unfinished ones."""
    places = [place for place in folder.list() if place.name.startswith("step_")]
    finished = [place for place in places if (place / MARK).exists()]
    for place in places:
        if place not in finished[-keep:]:
            place.delete()


@contextmanager
def _workspace(place: Location) -> Iterator[Path]:
    """Give the folder that DCP writes to: the place itself, or a temporary one that is uploaded."""
    if place.is_local:
        if dist.get_rank() == 0:
            place.delete()
            place.make()
        dist.barrier()
        yield Path(place.full_path)
        return
    folder = Path(tempfile.mkdtemp(prefix="lisan-checkpoint-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(files: dict[str, dict[str, Any]]) -> str:
    import hashlib

    lines = "".join(f"{name} {facts['sha256']}\n" for name, facts in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
