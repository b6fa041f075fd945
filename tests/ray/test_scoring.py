"""The reference pass through Ray Data: two actors score what one process scores."""

from pathlib import Path
from shutil import copytree

import pytest
from tiny import no_run, silent, train_config

from lisan.cluster.config import Precision
from lisan.core.artifact import Artifact, Store
from lisan.core.stage import ClusterConfig, StorageConfig, run_stage
from lisan.model.config import ModelConfig
from lisan.train.config import ScoreConfig
from lisan.train.preference.reference import REFERENCE, read_scores
from lisan.train.preference.score_parts import PART_BATCHES
from lisan.train.preference.score_preferences import SCORES
from lisan.train.stages import CPT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(120), pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 4


@pytest.mark.slow
def test_two_actors_score_what_one_process_scores(tiny_store: Store, tmp_path: Path) -> None:
    copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    run_stage(CPT, train_config(store, name="base", loop={"num_steps": 2}), no_run, silent)

    def score(name: str, num_workers: int) -> Artifact:
        config = ScoreConfig(
            name=name,
            tokens="tokens/preferences@v1",
            model=ModelConfig(path="model/base@v1"),
            precision=Precision.float32,
            micro_rows=1,
            mismatched=True,
            storage=StorageConfig(root=store.root.root),
            cluster=ClusterConfig(num_workers=num_workers, threads_per_worker=1),
        )
        return run_stage(SCORES, config, no_run, silent)

    alone, pair = score("alone", 0), score("pair", 2)
    assert 2 * alone.facts["rows"] > PART_BATCHES, "fewer rows make fewer parts than actors"
    for folder in ("", "mismatched"):
        place = f"{folder}/{REFERENCE}".lstrip("/")
        assert read_scores(pair.location / place).equals(read_scores(alone.location / place))
    assert pair.facts["mean_chosen_logp"] == alone.facts["mean_chosen_logp"]
