"""The guard: whether a step may be taken, or would do more harm than good.

In: loss and gradient norm of a step, summed over all ranks. Out: yes, or no and a line that says why, or
DivergenceError. Always: the same answer on every rank; a step that is skipped leaves weights and optimizer alone, and the
history that decides travels with the checkpoint, so that a resumed run decides what the whole one would have.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from statistics import median
from typing import Any

from lisan.core.errors import ConfigError, DivergenceError, TrainingError
from lisan.train.checkpoint.retention import Checkpoint

GUARD = "guard"


class OnSpike(StrEnum):
    stop = "stop"
    skip = "skip"
    "Leave the step out and go on with the next rows."


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    on_spike: OnSpike = OnSpike.stop
    spike_factor: float = 0.0
    "A loss or gradient norm of so many times its running median is a spike; 0 minds only what is not a finite number."
    window: int = 64
    "Steps that the median is over; it begins to count when that many were taken."
    max_skips: int = 3
    "Steps in a row that may be skipped."

    def __post_init__(self) -> None:
        if self.spike_factor and not 1 < self.spike_factor < math.inf:
            raise ConfigError(f"loop.guard.spike_factor must be > 1, or 0 for none, got {self.spike_factor}")
        if self.window < 1 or self.max_skips < 1:
            raise ConfigError(f"loop.guard needs window and max_skips >= 1, got {self.window} and {self.max_skips}")
        default = {field.name: field.default for field in fields(GuardConfig)}
        if not self.spike_factor and self.window != default["window"]:
            raise ConfigError(
                f"loop.guard.window={self.window} has no effect without loop.guard.spike_factor; set both"
            )
        if self.on_spike is OnSpike.stop and self.max_skips != default["max_skips"]:
            raise ConfigError(
                f"loop.guard.max_skips={self.max_skips} has no effect with loop.guard.on_spike=stop; set it to skip"
            )


class Guard:
    """Knows the last steps that were taken."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.num_skipped = self._in_a_row = 0
        self._history: dict[str, deque[float]] = {
            name: deque(maxlen=config.window) for name in ("gradient norm", "loss")
        }

    def open(self, checkpoint: Checkpoint) -> None:
        """Go on from what a checkpoint keeps."""
        if GUARD not in checkpoint.facts:
            raise TrainingError(f"checkpoint {checkpoint.location} knows nothing of a guard; delete it to begin anew")
        facts = checkpoint.facts[GUARD]
        self.num_skipped, self._in_a_row = facts["skipped"], facts["in_a_row"]
        for name, values in self._history.items():
            values.extend(facts[name])

    def close(self) -> dict[str, Any]:
        """Return what a checkpoint keeps."""
        history = {name: list(values) for name, values in self._history.items()}
        return {GUARD: {"skipped": self.num_skipped, "in_a_row": self._in_a_row, **history}}

    @property
    def recent_loss(self) -> float | None:
        """Mean loss of the last steps that were taken, `window` at most; None before the first."""
        losses = self._history["loss"]
        return sum(losses) / len(losses) if losses else None

    def refuse(self, step: int, loss: float, grad_norm: float, row_ids: Callable[[], list[int]]) -> str:
        """Return why a step is to be skipped, nothing when it may be taken; DivergenceError when the run has to stop."""
        values = {"gradient norm": grad_norm, "loss": loss}
        spike = next((said for name, value in values.items() if (said := self._judge(name, value))), "")
        if not spike:
            for name, value in values.items():
                self._history[name].append(value)
            self._in_a_row = 0
            return ""
        told, rows = spike.format(step=step), row_ids()
        named = f"{rows[:8]}" if len(rows) <= 8 else f"{rows[:8]} and {len(rows) - 8} more"
        if self.config.on_spike is OnSpike.stop:
            raise DivergenceError(f"{told}; lower optim.peak_lr or look at the rows {named}")
        if self._in_a_row == self.config.max_skips:
            raise DivergenceError(
                f"{told}, after {self._in_a_row} steps in a row were skipped, which is loop.guard.max_skips; "
                f"lower optim.peak_lr or look at the rows {named}"
            )
        self.num_skipped += 1
        self._in_a_row += 1
        return f"skipped: {told}; rows {named}"

    def _judge(self, name: str, value: float) -> str:
        """Return what is wrong with a value, with a place for the step; nothing when it is as usual."""
        if not math.isfinite(value):
            return f"{name} is {value} at step {{step}}"
        history, factor = self._history[name], self.config.spike_factor
        if not factor or len(history) < self.config.window or value <= factor * (usual := median(history)):
            return ""
        return (
            f"{name} is {value:.4g} at step {{step}}, more than {factor:g} times the median of {len(history)} steps, "
            f"{usual:.4g}"
        )
