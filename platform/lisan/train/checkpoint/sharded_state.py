"""Writes and loads the sharded state of a run.

A checkpoint is `step_00000100/` with DCP shards and `checkpoint.json`, which is written last. Every rank writes its own shards;
any number of workers loads them; an error on one rank is raised on all.
"""

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_state_dict,
)
from torch.optim import Optimizer

from lisan.core.errors import ArtifactError, TrainingError, first_line
from lisan.core.storage import Location, workspace, writing
from lisan.model.score import Scorer
from lisan.train.checkpoint.retention import MARK, Checkpoint, place_of
from lisan.train.checkpoint.shard_reader import ShardReader
from lisan.train.checkpoint.staging import State

T = TypeVar("T")
Files = dict[str, dict[str, Any]]
"Size and hash of every file, by name."
OPTIONS = StateDictOptions(ignore_frozen_params=True)
LOADING = StateDictOptions(ignore_frozen_params=True, strict=False)


def take_state(scorer: Scorer, optimizer: Optimizer) -> State:
    """Return the state of a checkpoint: the live tensors, not copies."""
    model_state, optimizer_state = get_state_dict(scorer, optimizer, options=OPTIONS)
    return {"model": model_state, "optimizer": optimizer_state}


def write(
    state: State, step: int, folder: Location, facts: Mapping[str, Any], group: dist.ProcessGroup | None = None
) -> Checkpoint:
    """Write a state that nobody changes meanwhile, and its mark when the files of all ranks lie in their place.

    What fails on one rank raises the same ArtifactError on all. Collectives go through `group`, so that a thread may call it.
    """
    place = place_of(folder, step)
    share = partial(together, group, place)
    share(lambda: _clear(place) if dist.get_rank() == 0 else None)
    shares = share(lambda: _write_share(state, place, group))
    files = {name: facts for share_files in shares for name, facts in share_files.items()}
    mark = {
        "step": step,
        **facts,
        "bytes": sum(f["bytes"] for f in files.values()),
        "sha256": _digest(files),
        "files": files,
    }
    share(lambda: _write_mark(place, mark) if dist.get_rank() == 0 else None)
    return Checkpoint(step, place, mark["bytes"], mark["sha256"], mark)


def together(group: dist.ProcessGroup | None, place: Location, do: Callable[[], T]) -> list[T]:
    """Do something on every rank and return what each made of it; what fails on one, for whatever reason, raises ArtifactError
    on all: a rank that left would be waited for."""
    mine: tuple[T | None, str] = (None, "")
    cause: Exception | None = None
    try:
        with writing(place, "the checkpoint"):
            mine = (do(), "")
    except ArtifactError as error:
        mine, cause = (None, str(error)), error
    except Exception as error:  # not of the storage: a mistake of ours, or of a library's
        mine, cause = (None, f"{place} is not complete: {type(error).__name__}: {error}"), error
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine, group=group)
    for _, said in outcomes:
        if said:
            raise ArtifactError(said) from cause
    return [made for made, _ in outcomes]


def _clear(place: Location) -> None:
    place.delete()
    place.make()


def _write_share(state: State, place: Location, group: dist.ProcessGroup | None) -> Files:
    """Write this rank's part and return its files: hashed where they were written, before they travel."""
    with workspace(place, "checkpoint") as local:
        try:
            dcp.save(state, checkpoint_id=local, process_group=group)
        except CheckpointException as error:  # a BaseException, which nobody else would catch
            raise OSError(_reason(error)) from error
        files = {file.name: _describe(file) for file in sorted(local.iterdir()) if _is_own(file.name)}
        if not place.is_local:
            place.upload(local)
    return files


def _is_own(name: str) -> bool:
    """Return whether DCP lets this rank write a file: `__3_0.distcp` is rank 3's, the metadata rank 0's."""
    rank = dist.get_rank()
    return name.startswith(f"__{rank}_") or (rank == 0 and not name.startswith("__"))


def _describe(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(stream, "sha256").hexdigest()}


def _write_mark(place: Location, mark: Mapping[str, Any]) -> None:
    found = {file.relative_to(place): size for file, size in place.walk()}
    lost = sorted(name for name, facts in mark["files"].items() if found.get(name) != facts["bytes"])
    if lost:
        raise OSError(
            f"{len(lost)} of {len(mark['files'])} files that workers wrote are not there ({lost[0]}), as when every node "
            "writes to a disk of its own"
        )
    (place / MARK).write_json(mark)


def load(scorer: Scorer, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Put the state of a checkpoint into the model and the optimizer, whatever number of workers wrote it."""
    state = take_state(scorer, optimizer)
    _read(state, checkpoint)
    set_state_dict(
        scorer, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=LOADING
    )


def load_weights(scorer: Scorer, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint into the model; the optimizer's state, in the same files, is not read."""
    state: State = {"model": get_model_state_dict(scorer, options=OPTIONS)}
    _read(state, checkpoint)
    set_model_state_dict(scorer, state["model"], options=LOADING)


def _read(state: State, checkpoint: Checkpoint) -> None:
    try:
        dcp.load(state, storage_reader=ShardReader(checkpoint.location))
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise TrainingError(
            f"checkpoint {checkpoint.location} does not fit this model or is damaged: {_reason(error)}; "
            "delete it to go on from the one before"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what the first rank that failed raised."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    first = next((failure for failure, _ in failures.values()), error)
    return first_line(first)


def _digest(files: Files) -> str:
    lines = "".join(f"{name} {facts['sha256']}\n" for name, facts in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
