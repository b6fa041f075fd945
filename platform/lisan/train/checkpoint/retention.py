"""Lists, opens, ranks and deletes the checkpoints of a run.

A checkpoint is a folder `step_00000100/`; without its `checkpoint.json` it is not finished and is ignored.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lisan.cluster.config import Precision
from lisan.core.errors import ArtifactError, TrainingError
from lisan.core.integrity import Listed, check_hashes, check_sizes
from lisan.core.storage import Location

MARK = "checkpoint.json"
LOSS = "loss"
"""What the best checkpoints are chosen by: where there is a validation its loss, or none while it is not measured; else that of
the last steps."""
METRICS = "metrics"
"The last that were logged, which a run that goes on from its last step would not have."
PRECISION = "precision"
"That the steps were computed in; where a run went on on other machines, each with its last step."
VALIDATION = "validation"
"Losses that were measured while training went on."


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint."""

    step: int
    location: Location
    num_bytes: int
    digest: str
    facts: dict[str, Any]
    "Content of `checkpoint.json`."

    def fact(self, name: str) -> Any:
        """Return one fact; TrainingError when an older version did not save it."""
        if name not in self.facts:
            raise TrainingError(f"checkpoint {self.location} has no {name}; delete it to start again")
        return self.facts[name]

    @property
    def position(self) -> int:
        """Position in the row order of the next step."""
        return int(self.fact("position"))

    @property
    def precision(self) -> Precision:
        """The one that its last steps were computed in."""
        return Precision(self.facts[PRECISION].split()[-1])


def find_latest(folder: Location) -> Checkpoint | None:
    """Return the finished checkpoint with the highest step."""
    finished = _finished(folder)
    return _open(finished[-1]) if finished else None


def _finished(folder: Location) -> list[Location]:
    """Return the places of finished checkpoints, the latest last."""
    return [place for place in folder.list() if place.name.startswith("step_") and (place / MARK).exists()]


def place_of(folder: Location, step: int) -> Location:
    return folder / f"step_{step:08d}"


def open_step(folder: Location, step: int) -> Checkpoint:
    """Return the finished checkpoint of a step that has one."""
    return _open(place_of(folder, step))


def _open(place: Location) -> Checkpoint:
    try:
        facts = (place / MARK).read_json()
        return Checkpoint(facts["step"], place, facts["bytes"], facts["sha256"], facts)
    except (ValueError, LookupError, TypeError) as error:
        raise ArtifactError(f"checkpoint {place.name} is damaged: {place / MARK} is cut off") from error


def drop_damaged(folder: Location) -> None:
    """Let a run go on from the latest checkpoint that is whole; say a line for each that is not, and take its mark.

    Of all of them sizes are compared, of the latest hashes. One process calls it before the others look.
    """
    said, is_latest = [], True
    for place in reversed(_finished(folder)):
        try:
            listed = Listed(place, _open(place).facts.get("files", {}), f"checkpoint {place.name}", "")
            check_sizes(listed)
            if is_latest:
                check_hashes(listed)
            is_latest = False
        except ArtifactError as error:
            said.append(str(error).rstrip("; "))
            (place / MARK).delete()
    if said:
        latest = find_latest(folder)
        outcome = f"goes on from step {latest.step}" if latest else "begins anew, for there is no other"
        print("\n".join(f"  {line}; the run {outcome}" for line in said), flush=True)


def next_start(folder: Location) -> tuple[int, int]:
    """Return the step at which a run in that folder goes on, and the position of its data there."""
    latest = find_latest(folder)
    return (0, 0) if latest is None else (latest.step, latest.position)


def amend(checkpoint: Checkpoint, facts: Mapping[str, Any]) -> None:
    """Add facts to a finished checkpoint; rank 0 calls it."""
    (checkpoint.location / MARK).write_json({**checkpoint.facts, **facts})


def remove_old(folder: Location, keep: int, keep_best: int = 0) -> None:
    """Delete all but the `keep` latest checkpoints and the `keep_best` of lowest loss, and unfinished ones.

    The latest, which a resumed run takes, stays always. Called by rank 0 while none is being written.
    """
    kept = {*_finished(folder)[-keep:], *(found.location for found in find_best(folder, keep_best))}
    for place in folder.list():
        if place.name.startswith("step_") and place not in kept:
            (place / MARK).delete()  # first, so that a half deleted folder is no checkpoint
            place.delete()


def find_best(folder: Location, count: int) -> list[Checkpoint]:
    """Return the finished checkpoints of lowest loss, the best first and of equals the earlier; none of those without one."""
    if not count:
        return []
    finished = map(_open, _finished(folder))
    measured = [found for found in finished if found.facts.get(LOSS) is not None and math.isfinite(found.facts[LOSS])]
    return sorted(measured, key=lambda found: (found.facts[LOSS], found.step))[:count]
