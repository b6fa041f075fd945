"""Rung 3: what all workers come to alike ends the run at once, and Ray starts nothing again."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree

import pytest
from tiny import no_run, silent, train_config

from lisan.core.artifact import Store
from lisan.core.errors import DivergenceError
from lisan.core.stage import ClusterConfig, run_stage
from lisan.train.stages import CPT

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(240), pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 2


def test_a_loss_that_is_not_a_number_on_all_workers_is_not_tried_again(tiny_store: Store, tmp_path: Path) -> None:
    """What Ray has tried again comes back as a TrainingError of its controller, ours as it was raised."""
    copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    cluster = ClusterConfig(num_workers=2, cpus_per_worker=0.5, threads_per_worker=1)
    config = replace(train_config(store, optim={"peak_lr": 1e25, "warmup_steps": 0}), cluster=cluster)
    with pytest.raises(DivergenceError, match=r"gradient norm is (nan|inf) at step \d") as caught:
        run_stage(CPT, config, no_run, silent)
    assert "\n" not in str(caught.value)
