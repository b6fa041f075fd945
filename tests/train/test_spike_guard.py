"""The guard in front of the optimizer, alone and within the loop."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ALONE, Recorder, largest_difference, make_job, train_alone, train_as_pair, train_config, weights

from lisan.core.artifact import Store
from lisan.core.errors import ConfigError, TrainingError
from lisan.core.storage import Location
from lisan.train.checkpoint.retention import Checkpoint, amend, find_latest
from lisan.train.run import run_worker
from lisan.train.spike_guard import GuardConfig, OnSpike, SpikeGuard

SKIP: dict[str, Any] = {"on_spike": OnSpike.skip, "spike_factor": 3.0, "window": 4}


def guard_of(**values: Any) -> SpikeGuard:
    return SpikeGuard(GuardConfig(**{**SKIP, **values}))


def refused(guard: SpikeGuard, *values: float, grad_norm: float | None = None) -> list[int]:
    """Return which of the steps with these losses, and gradient norms that are the same or one given, are refused."""
    return [
        step
        for step, loss in enumerate(values)
        if guard.refuse(step, loss, loss if grad_norm is None else grad_norm, lambda: [1, 2])
    ]


def test_a_spike_is_refused_and_not_remembered() -> None:
    guard = guard_of()
    assert refused(guard, 1, 1, 1, 1, 3.1, 2.9, 3.1) == [4, 6]
    assert guard.num_skipped == 2
    assert guard.state_dict()["loss"] == [1, 1, 1, 2.9]


def test_until_the_window_is_full_only_what_is_not_finite_is_refused() -> None:
    assert refused(guard_of(), 1, 1, 100, math.inf, 1, 1) == [3]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_without_a_factor_only_what_is_not_finite_is_refused(bad: float) -> None:
    guard = SpikeGuard(GuardConfig(on_spike=OnSpike.skip))
    assert refused(guard, 1, 1, 1e9, bad, 1) == [3]


def test_the_gradient_norm_alone_is_enough() -> None:
    guard = guard_of()
    assert refused(guard, 1, 1, 1, 1, grad_norm=1) == []
    assert "gradient norm is 9 at step 7, more than 3 times the median of 4 steps, 1" in guard.refuse(
        7, 1.0, 9.0, lambda: [3]
    )


def test_the_line_names_step_and_rows() -> None:
    said = guard_of().refuse(5, math.nan, 1.0, lambda: list(range(5, 25)))
    assert said == "skipped: loss is nan at step 5; rows [5, 6, 7, 8, 9, 10, 11, 12] and 12 more"


def test_too_many_in_a_row_stop_the_run() -> None:
    guard = guard_of(max_skips=2)
    assert refused(guard, math.nan, math.nan, 1, math.nan, math.nan) == [0, 1, 3, 4]
    with pytest.raises(
        TrainingError,
        match=r"loss is nan at step 9, after 2 steps in a row were skipped, which is loop\.guard\.max_skips",
    ):
        guard.refuse(9, math.nan, 1.0, lambda: [1])


def test_stopping_names_what_the_usual_was() -> None:
    guard = SpikeGuard(GuardConfig(spike_factor=2.0, window=1))
    assert not guard.refuse(0, 1.0, 1.0, lambda: [1])
    with pytest.raises(
        TrainingError,
        match=r"loss is 2\.5 at step 1, more than 2 times .* 1; lower optim\.peak_lr or look at the rows \[1\]",
    ):
        guard.refuse(1, 2.5, 1.0, lambda: [1])


def test_a_guard_goes_on_from_a_checkpoint() -> None:
    losses = [1.0, 1.1, math.nan, 0.7, 0.2, 5.0, 1.0, math.inf, math.inf, 0.1, 0.6, 3.0]
    for cut in range(len(losses)):
        whole, before, after = guard_of(), guard_of(), guard_of()
        refused(before, *losses[:cut])
        after.load_state_dict(before.state_dict())
        assert [*refused(whole, *losses)] == [
            *refused(guard_of(), *losses[:cut]),
            *(cut + at for at in refused(after, *losses[cut:])),
        ]
        assert after.state_dict() == whole.state_dict()


def test_a_checkpoint_without_a_guard_is_refused() -> None:
    with pytest.raises(TrainingError, match="has no guard; delete it"):
        Checkpoint(1, Location("/tmp"), 0, "", {}).fact("guard")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"spike_factor": 1.0}, r"loop\.guard\.spike_factor must be > 1, or 0 for none, got 1"),
        ({"spike_factor": math.nan}, "spike_factor must be > 1"),
        ({"window": 0}, r"window and max_skips >= 1, got 0 and 3"),
        ({"max_skips": 0}, r"window and max_skips >= 1"),
        ({"spike_factor": 0.0, "window": 9}, r"loop\.guard\.window=9 has no effect without"),
        ({"on_spike": OnSpike.stop, "max_skips": 9}, r"loop\.guard\.max_skips=9 has no effect with .*on_spike=stop"),
    ],
)
def test_an_impossible_guard_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        GuardConfig(**{**SKIP, **values})


class KilledError(Exception):
    """Stands for a process that dies."""


def test_runs_that_skip_resume_and_share_the_work_exactly(tiny_store: Store, tmp_path: Path) -> None:
    """Interrupted and resumed is uninterrupted, and two workers decide what one decides."""
    guard = GuardConfig(on_spike=OnSpike.skip, spike_factor=1.01, window=2, max_skips=5)
    optim = {"schedule": "constant", "warmup_steps": 0, "peak_lr": 1e-3}
    config = train_config(tiny_store, loop={"num_steps": 8, "guard": guard, "checkpoint_every": 4}, optim=optim)
    whole = train_alone(tiny_store, config, tmp_path / "whole")
    first_half, second_half = ([step for step in taken(whole) if (step > 4) == late] for late in (False, True))
    assert 2 < len(first_half) < 4 or 0 < len(second_half) < 4, "the guard is to skip some steps and to take some"

    def die(metrics: Any, checkpoint: str | None) -> None:
        raise KilledError

    with pytest.raises(KilledError):
        train_alone(tiny_store, config, tmp_path / "cut", replace(ALONE, report=die))
    resumed = train_alone(tiny_store, config, tmp_path / "cut")
    assert taken(resumed) == second_half
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "cut")) == 0
    assert guard_of_checkpoint(tmp_path / "cut") == guard_of_checkpoint(tmp_path / "whole")
    [pair] = train_as_pair([make_job(tiny_store, config, tmp_path / "pair")], tmp_path / "runs")
    assert taken(pair) == taken(whole)
    assert largest_difference(weights(tmp_path / "whole"), weights(tmp_path / "pair")) < 2e-5


def test_a_run_that_goes_on_tells_of_the_steps_that_were_skipped_before(tiny_store: Store, tmp_path: Path) -> None:
    train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 2}), tmp_path)
    latest = find_latest(Location(str(tmp_path / "checkpoints")))
    assert latest is not None
    amend(latest, {"guard": {**latest.facts["guard"], "skipped": 3}})
    run = train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 3}), tmp_path)
    assert run.curve("skipped_steps") == [3]


def taken(run: Recorder) -> list[int]:
    """Return the steps that were taken: one that was skipped has no loss to tell."""
    return sorted(step for step, metrics in run.steps.items() if "train/loss" in metrics)


def guard_of_checkpoint(folder: Path) -> Any:
    latest = find_latest(Location(str(folder / "checkpoints")))
    assert latest is not None
    return latest.facts["guard"]


def test_a_step_that_is_not_a_number_is_skipped_with_a_line(
    tiny_store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A rate beyond reason breaks the weights in the first step; what follows is skipped until the run gives up."""
    loop = {"guard": GuardConfig(on_spike=OnSpike.skip, max_skips=2)}
    config = train_config(tiny_store, loop=loop, optim={"peak_lr": 1e25, "warmup_steps": 0})
    with pytest.raises(
        TrainingError, match=r"gradient norm is (nan|inf) at step \d, after 2 steps in a row were skipped"
    ):
        run_worker(make_job(tiny_store, config, tmp_path), ALONE)
    lines = [line for line in capsys.readouterr().out.splitlines() if "skipped" in line]
    assert len(lines) == 2
    assert all("skipped: gradient norm is" in line and "; rows [" in line for line in lines)


def test_skipped_steps_leave_weights_and_optimizer_untouched(tiny_store: Store, tmp_path: Path) -> None:
    """A run that may take only its first two steps ends as one of two steps does, whatever came after."""
    strict = GuardConfig(on_spike=OnSpike.skip, spike_factor=1 + 1e-9, window=2, max_skips=9)
    optim = {"schedule": "constant", "warmup_steps": 0, "peak_lr": 5.0}
    short = train_config(tiny_store, loop={"num_steps": 2}, optim=optim)
    long = train_config(tiny_store, loop={"num_steps": 5, "guard": strict, "checkpoint_every": 5}, optim=optim)
    train_alone(tiny_store, short, tmp_path / "short")
    run = train_alone(tiny_store, long, tmp_path / "long")
    assert largest_difference(weights(tmp_path / "short"), weights(tmp_path / "long")) == 0
    assert sorted(run.steps) == [1, 2, 5]
    first, second = (
        optimizer_state(tmp_path / name / "checkpoints", step) for name, step in (("short", 2), ("long", 5))
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)


def optimizer_state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    file = folder / "state.pt"
    dcp_to_torch_save(folder / f"step_{step:08d}", file)
    state = torch.load(file, weights_only=False)["optimizer"]["state"]
    return {f"{name}.{key}": value for name, values in state.items() for key, value in values.items()}
