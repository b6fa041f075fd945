"""Preferences from a model's own answers: served by vLLM, sampled, judged, encoded and trained on."""

import math
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny import encode, no_run, silent, train_config

from lisan.core.artifact import Store
from lisan.core.stage import StorageConfig, run_stage
from lisan.corpus.reader import read_records
from lisan.inference.answers import read_answers
from lisan.inference.config import Dtype, EngineConfig, PromptsConfig, SamplingConfig
from lisan.model.config import ModelConfig, ShapeConfig
from lisan.records.kinds import RecordKind
from lisan.synth.config import SampleConfig
from lisan.synth.sample_preferences import SAMPLE
from lisan.train.stages import DPO, SFT

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240), pytest.mark.usefixtures("local_ray")]
NUM_CPUS = 4

SHAPE = ShapeConfig(num_layers=2, hidden_size=64, intermediate_size=128, num_heads=2, num_kv_heads=1, max_positions=256)
"Heads of 32: the smallest that vLLM computes on a CPU."


def test_a_models_own_answers_become_the_preferences_it_is_trained_on(tiny_store: Store, tmp_path: Path) -> None:
    copytree(tiny_store.root.root, tmp_path / "root")
    store = Store(str(tmp_path / "root"))
    start = ModelConfig(shape=SHAPE, tokenizer="tokenizer/tiny@v1")
    chat: dict[str, Any] = {"name": "policy", "model": start, "loop": {"num_steps": 60, "checkpoint_every": 60}}
    run_stage(SFT, train_config(store, "conversations", **chat), no_run, silent)
    config = SampleConfig(
        name="sampled",
        prompts=PromptsConfig(corpus="corpus/tiny@v1", limit=10),
        policy="model/policy@v1",
        engine=EngineConfig(dtype=Dtype.float32, kv_cache_gb=0.1, max_num_seqs=16),
        sampling=SamplingConfig(num_answers=4, max_tokens=64, top_k=0),
        storage=StorageConfig(root=store.root.root),
    )
    sampled = run_stage(SAMPLE, config, no_run, silent)
    asked = [one for file in (sampled.location / "answers").list() for one in read_answers(file)]
    assert len(asked) == 20
    assert all(len({answer.text for answer in one.answers}) > 1 for one in asked), (
        "four seeds, not one answer four times"
    )
    pairs = list(read_records(sampled, RecordKind.preferences))
    assert len(pairs) >= 10
    assert sampled.facts["mean_chosen_score"] > sampled.facts["mean_rejected_score"]
    assert "model/policy@v1" in sampled.manifest["parents"]
    encode(store, RecordKind.preferences, name="sampled", corpus="corpus/sampled@v1", context_length=256)
    values: dict[str, Any] = {"tokens": "tokens/sampled@v1", "model": ModelConfig(path="model/policy@v1")}
    loop = {"num_steps": 3, "step_rows": 4, "checkpoint_every": 3}
    trained = run_stage(DPO, train_config(store, "preferences", name="aligned", loop=loop, **values), no_run, silent)
    assert trained.facts["steps"] == 3
    assert trained.facts["metrics"]["loss"] < math.log(2)
