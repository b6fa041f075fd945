"""Validation beside two workers: its losses are those of the workers, training does not notice, and what fails is one line."""

import os
import time
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny import encode, largest_difference, make_job, no_run, silent, train_as_pair, train_config

from lisan.core.artifact import Store
from lisan.core.errors import ConfigError, TrainingError
from lisan.core.stage import ClusterConfig, run_stage
from lisan.core.storage import Location
from lisan.records.kinds import RecordKind
from lisan.train import launch
from lisan.train.metrics.run_log import read_run_log
from lisan.train.options import ValidationConfig
from lisan.train.stages import CPT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 2
"As many logical CPUs as the smallest machine has."


@pytest.mark.slow
def test_a_validation_beside_two_workers_finds_what_they_find_and_moves_no_bit(
    tiny_store: Store, tmp_path: Path
) -> None:
    copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    encode(store, RecordKind.documents, name="held_out", split="validation")

    def config(**validation: Any) -> Any:
        return train_config(
            store,
            validation=ValidationConfig(tokens="tokens/held_out@v1", num_rows=5, **validation),
            loop={"num_steps": 9, "checkpoint_every": 3, "keep_checkpoints": 1, "keep_best": 1},
            cluster=ClusterConfig(num_workers=2, cpus_per_worker=0.5, threads_per_worker=1),
        )

    # Two processes without Ray wait for their validations.
    train_as_pair([make_job(store, config(), tmp_path / "within")], tmp_path / "runs")
    within = Location(str(tmp_path / "within"))
    made = run_stage(CPT, config(asynchronous=True), no_run, silent)
    beside = store.checkpoints(made.ref)
    expected, found = losses(within / "checkpoints"), losses(beside)
    assert list(found) == list(expected) == [3, 6, 9]
    for step in found:
        assert found[step] == pytest.approx(expected[step], rel=1e-5)
    best = min(expected, key=lambda step: expected[step]["validation/loss"])
    assert {int(step): loss for step, loss in made.facts["best_checkpoints"].items()} == {
        best: found[best]["validation/loss"]
    }
    assert {place.name for place in beside.list() if place.name.startswith("step_")} == {
        f"step_{step:08d}" for step in (best, 9)
    }
    assert largest_difference(weights(Path(made.location.full_path)), weights(tmp_path / "within" / "model")) == 0


def losses(checkpoints: Location) -> dict[int, dict[str, float]]:
    """Return what the history of a run says of its validations, by step."""
    _, lines = read_run_log(checkpoints)
    return {
        line["step"]: {key: value for key, value in line.items() if key.startswith("validation/")}
        for line in lines
        if "validation/loss" in line
    }


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_a_validation_that_fails_dies_or_hangs_is_one_line_and_the_next_is_measured(
    capsys: pytest.CaptureFixture[str],
) -> None:
    import ray

    class Fragile:
        def measure(self, step: int) -> dict[str, float]:
            if step == 1:
                raise TrainingError("checkpoint 1 does not fit this model")
            if step == 2:
                os._exit(1)
            if step == 3:
                time.sleep(600)
            return {"validation/loss": 4.0}

    actor = ray.remote(Fragile).options(num_cpus=0, max_restarts=3).remote()
    validate = partial(launch._validate, actor, 60.0)
    assert validate(4) == {"validation/loss": 4.0}

    def comes_back() -> bool:
        """Ask again while the actor is being started again; what is asked just then is lost."""
        for _ in range(40):
            try:
                return bool(ray.get(actor.measure.remote(4), timeout=10) == {"validation/loss": 4.0})
            except ray.exceptions.RayError:
                time.sleep(0.25)
        return False

    late = "took longer than runtime.validation_timeout_s=0.5; raise that, or lower validation.num_rows"
    for step, said in ((1, "checkpoint 1 does not fit this model"), (2, "Actor"), (3, late)):
        assert launch._validate(actor, 0.5 if step == 3 else 60.0, step) == {}
        # Ray's own word on a process that died may stand beside ours.
        [line] = [line for line in capsys.readouterr().out.splitlines() if "is not validated" in line]
        assert line.startswith(f"  step {step} is not validated, training goes on: ")
        assert said in line
        assert comes_back()
    ray.kill(actor)


def test_a_validator_needs_a_gpu_beside_those_of_the_workers() -> None:
    with pytest.raises(
        ConfigError, match=r"needs 3 GPU for 2 workers and the validator \(validation\.asynchronous=true\)"
    ):
        launch.check_capacity(ClusterConfig(num_workers=2, use_gpu=True), num_validators=1)
    launch.check_capacity(ClusterConfig(num_workers=2), num_validators=1)
