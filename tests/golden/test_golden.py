"""Today's code walks the recorded trajectories."""

from pathlib import Path

import numpy as np
import pytest
from trajectories import KINDS, NUM_STEPS, follow, read, residuals

from lisan.core.artifact import Store

STEP = {"loss": 2e-5, "grad_norm": 2e-4}
"Largest relative residual of a step, ten times what AVX2 and plain kernels differ from AVX-512: 2.0e-6 and 1.7e-5."
MEAN = {"loss": 4e-6, "grad_norm": 2e-5}
"Largest mean signed residual: rounding has no direction, a changed computation has one."

Curves = dict[str, dict[str, list[float]]]


@pytest.fixture(scope="module")
def found(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Curves:
    return dict(follow(tiny_store, tmp_path_factory.mktemp("golden")))


@pytest.mark.parametrize("curve", STEP)
@pytest.mark.parametrize("name", KINDS)
def test_a_trajectory_is_the_recorded_one(name: str, curve: str, found: Curves) -> None:
    golden = read(name)
    assert len(golden[curve]) == NUM_STEPS
    away = residuals(found[name][curve], golden[curve])
    worst = int(np.abs(away).argmax())
    said = f"{curve} of {name} left its way at step {worst + 1} by {away[worst]:+.1e}, recorded with {golden['environment']}"
    assert abs(away[worst]) < STEP[curve], said
    assert abs(away.mean()) < MEAN[curve], f"{said}; mean signed residual {away.mean():+.1e}"


def test_the_trajectories_go_somewhere() -> None:
    for name in KINDS:
        loss = read(name)["loss"]
        assert min(loss) < 0.97 * loss[0]


def test_a_trajectory_that_is_one_part_in_ten_thousand_off_is_noticed(found: Curves) -> None:
    loss = np.array(found["cpt"]["loss"])
    assert np.abs(residuals((loss * 1.0001).tolist(), loss.tolist())).max() > STEP["loss"]


def test_the_recorded_files_hold_nothing_but_curves_and_their_environment() -> None:
    for file in Path(__file__).parent.glob("*.json"):
        assert set(read(file.stem)) == {"environment", "command", "loss", "grad_norm"}
