"""The state of a run, to storage and back.

In: a sharded model and its optimizer. Out: `step_00000100/` with DCP shards and `checkpoint.json`, written last.
Always: loading works on another number of workers; every rank writes its own; what fails on one fails on all.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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

from lisan.core.errors import ArtifactError, TrainingError
from lisan.core.storage import Location, writing
from lisan.model.score import Scorer
from lisan.train.checkpoint import MARK, Checkpoint, place_of
from lisan.train.staging import State

T = TypeVar("T")
Files = dict[str, dict[str, Any]]
"Size and hash of every file, by name."
OPTIONS = StateDictOptions(ignore_frozen_params=True)
LOADING = StateDictOptions(ignore_frozen_params=True, strict=False)


def take_state(scorer: Scorer, optimizer: Optimizer) -> State:
    """Return what a checkpoint holds: the very tensors that training goes on to change, not copies."""
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
    """Do something on every rank and return what each made of it; what fails on one raises ArtifactError on all."""
    mine: tuple[T | None, str] = (None, "")
    try:
        with writing(place, "the checkpoint"):
            mine = (do(), "")
    except ArtifactError as error:
        mine = (None, str(error))
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, mine, group=group)
    for _, said in outcomes:
        if said:
            raise ArtifactError(said)
    return [made for made, _ in outcomes]


def _clear(place: Location) -> None:
    place.delete()
    place.make()


def _write_share(state: State, place: Location, group: dist.ProcessGroup | None) -> Files:
    """Write this rank's part and return its files: hashed where they were written, before they travel."""
    with _workspace(place) as local:
        try:
            dcp.save(state, checkpoint_id=local, process_group=group)
        except CheckpointException as error:  # a BaseException, which nobody else would catch
            raise OSError(_reason(error)) from error
        files = {file.name: _describe(file) for file in sorted(local.iterdir()) if _is_own(file.name)}
        if not place.is_local:
            place.upload(local)
    return files


def _is_own(name: str) -> bool:
    """Tell whether DCP lets this rank write a file: `__3_0.distcp` is rank 3's, the metadata rank 0's."""
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
    _read(state, checkpoint, checkpoint.location.local_folder())
    set_state_dict(
        scorer, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"], options=LOADING
    )


def load_weights(scorer: Scorer, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint, without the optimizer's state, into the model; no copy of the checkpoint stays behind."""
    state: State = {"model": get_model_state_dict(scorer, options=OPTIONS)}
    with tempfile.TemporaryDirectory(prefix="lisan-checkpoint-") as folder:
        _read(state, checkpoint, checkpoint.location.local_folder(cache=Path(folder)))
    set_model_state_dict(scorer, state["model"], options=LOADING)


def _read(state: State, checkpoint: Checkpoint, folder: Path) -> None:
    try:
        dcp.load(state, checkpoint_id=folder)
    except (Exception, CheckpointException) as error:  # the latter is no Exception
        raise TrainingError(
            f"checkpoint {checkpoint.location} does not fit this model or is damaged: {_reason(error)}; "
            "delete it to go on from the one before"
        ) from error


def _reason(error: BaseException) -> str:
    """Return the first line of what the first rank that failed raised."""
    failures = error.failures if isinstance(error, CheckpointException) else {}
    first = next((failure for failure, _ in failures.values()), error)
    return next(iter(str(first).splitlines()), "") or type(first).__name__


@contextmanager
def _workspace(place: Location) -> Iterator[Path]:
    """Give the folder that DCP writes to: the place itself, or a temporary one that is uploaded."""
    if place.is_local:
        yield Path(place.full_path)
        return
    folder = Path(tempfile.mkdtemp(prefix="lisan-checkpoint-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _digest(files: Files) -> str:
    lines = "".join(f"{name} {facts['sha256']}\n" for name, facts in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
