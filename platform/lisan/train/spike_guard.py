"""Refuses or skips steps whose loss or gradient norm is not finite or is a spike.

Takes sums over all ranks, so that every rank decides alike. A skipped step leaves weights and optimizer unchanged. The recent
values are part of a checkpoint, so that a resumed run decides as an uninterrupted one.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from statistics import median
from typing import Any

from lisan.core.errors import ConfigError, DivergenceError


class OnSpike(StrEnum):
    stop = "stop"
    skip = "skip"
    "Skip the step and continue with the next rows."


@dataclass(frozen=True, kw_only=True, slots=True)
class GuardConfig:
    on_spike: OnSpike = OnSpike.stop
    spike_factor: float = 0.0
    "A loss or gradient norm above this multiple of its running median is a spike; 0 refuses only values that are not finite."
    window: int = 64
    "Steps of the running median; no spike is found before that many steps."
    max_skips: int = 3
    "Largest number of consecutive skipped steps."

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


class SpikeGuard:
    """Compares loss and gradient norm of each step with those of the last taken steps."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.num_skipped = self._in_a_row = 0
        self._recent: dict[str, deque[float]] = {
            name: deque(maxlen=config.window) for name in ("gradient norm", "loss")
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        recent = {name: list(values) for name, values in self._recent.items()}
        return {"skipped": self.num_skipped, "in_a_row": self._in_a_row, **recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state of a checkpoint."""
        self.num_skipped, self._in_a_row = state["skipped"], state["in_a_row"]
        for name, values in self._recent.items():
            values.extend(state[name])

    @property
    def recent_loss(self) -> float | None:
        """Mean loss of the last `window` taken steps; None before the first."""
        losses = self._recent["loss"]
        return sum(losses) / len(losses) if losses else None

    def refuse(self, step: int, loss: float, grad_norm: float, row_ids: Callable[[], list[int]]) -> str:
        """Return the reason to skip a step, empty to take it; DivergenceError when the run must stop."""
        values = {"gradient norm": grad_norm, "loss": loss}
        spike = next((reason for name, value in values.items() if (reason := self._find_spike(name, value))), "")
        if not spike:
            for name, value in values.items():
                self._recent[name].append(value)
            self._in_a_row = 0
            return ""
        reason, rows = spike.format(step=step), row_ids()
        named = f"{rows[:8]}" if len(rows) <= 8 else f"{rows[:8]} and {len(rows) - 8} more"
        if self.config.on_spike is OnSpike.stop:
            raise DivergenceError(f"{reason}; lower optim.peak_lr or look at the rows {named}")
        if self._in_a_row == self.config.max_skips:
            raise DivergenceError(
                f"{reason}, after {self._in_a_row} steps in a row were skipped, which is loop.guard.max_skips; "
                f"lower optim.peak_lr or look at the rows {named}"
            )
        self.num_skipped += 1
        self._in_a_row += 1
        return f"skipped: {reason}; rows {named}"

    def _find_spike(self, name: str, value: float) -> str:
        """Return the fault of a value with a placeholder for the step; empty for a usual value."""
        if not math.isfinite(value):
            return f"{name} is {value} at step {{step}}"
        recent, factor = self._recent[name], self.config.spike_factor
        if not factor or len(recent) < self.config.window or value <= factor * (usual := median(recent)):
            return ""
        return (
            f"{name} is {value:.4g} at step {{step}}, more than {factor:g} times the median of {len(recent)} steps, "
            f"{usual:.4g}"
        )
