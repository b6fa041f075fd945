"""The training stages: what is refused before a worker starts, and what the manifest tells."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tiny import SHAPE, Recorder, encode, no_run, train_config

from lisan.cluster.config import Precision
from lisan.cluster.worker import ProcessGroup, Worker, share_threads, worker_from_environment
from lisan.core.artifact import Artifact, Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError, DataError, TrainingError
from lisan.core.stage import ClusterConfig, Stage, StorageConfig, run_stage
from lisan.core.storage import Location
from lisan.data.config import MixConfig
from lisan.data.mix import make_plan
from lisan.data.rows import RowReader
from lisan.model.config import Attention, ModelConfig, ShardingConfig
from lisan.records.kinds import RecordKind
from lisan.tokenizer.chat.chat_template import template_hash
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.tokenizer.tokenizer import load_tokenizer
from lisan.train.checkpoint.retention import find_latest
from lisan.train.config import DpoConfig, TrainConfig
from lisan.train.launch_checks import check_targets
from lisan.train.options import Method, Rows, RuntimeConfig, TuningConfig
from lisan.train.run import TrainJob, run_worker
from lisan.train.stages import CPT, DPO, SFT, launch


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A copy of the tiny store with a second tokenizer, its tokens, and an expansion of it."""
    root = tmp_path_factory.mktemp("stages") / "root"
    copytree(tiny_store.root.root, root)
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    for config in (
        TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common),
        TokenizerConfig(name="enar", base="tokenizer/en@v1", sources=("ar_text",), num_pieces=100, **common),
    ):
        run_stage(TOKENIZER, config, no_run, lambda _: None)
    made = Store(str(root))
    encode(made, RecordKind.documents, "tokenizer/en@v1", name="en")
    encode(made, RecordKind.documents, "tokenizer/enar@v1", name="enar")
    return made


def run(stage: Stage, config: Any) -> Artifact:
    return run_stage(stage, config, no_run, lambda _: None)


def small(store: Store, kind: str = "documents", **changes: Any) -> Any:
    return train_config(store, kind, **{"loop": {"num_steps": 2, "checkpoint_every": 2}, **changes})


@pytest.fixture(scope="module")
def trained(store: Store) -> Artifact:
    return run(CPT, small(store, name="trained"))


def test_the_manifest_tells_what_was_trained(trained: Artifact, store: Store) -> None:
    facts = trained.facts
    reader = RowReader(store.open(Ref.parse("tokens/documents@v1")))
    rows = reader.read(make_plan(reader.num_rows, MixConfig(), 2, 8).rows(0, 16))
    tokens = np.bincount(reader.source_of(rows.row_ids), [sum(lens) for lens in rows.doc_lens])
    assert facts["mix"] == dict(zip(("ar_text", "en_text"), tokens, strict=True))
    assert (facts["steps"], facts["tokens_seen"]) == (2, sum(tokens))
    assert sum(epochs * reader.num_rows[source] for source, epochs in facts["epochs"].items()) == pytest.approx(16)
    assert facts["metrics"]["loss"] > 0
    assert facts["checkpoint"]["step"] == 2
    assert facts["checkpoint"]["uri"] == str(store.checkpoints(trained.ref) / "step_00000002")
    assert facts["template_hash"] == template_hash(load_tokenizer(trained))
    assert "run.html" in trained.manifest["files"]
    assert set(trained.manifest["parents"]) == {"tokens/documents@v1", "tokenizer/tiny@v1"}


def test_the_model_is_a_folder_that_anybody_can_load(trained: Artifact) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = trained.location.full_path
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False).startswith(
        "<|im_start|>user"
    )
    assert model.generation_config.eos_token_id is not None
    assert model.config.vocab_size >= len(tokenizer)


def launcher(spoil: Callable[[TrainJob], None], **loop: int) -> Callable[[TrainJob], dict[str, float]]:
    """Return a launcher that reports success after having trained something less, or having lost something of it."""

    def launch(job: TrainJob) -> dict[str, float]:
        optim = replace(job.config.optim, warmup_steps=1)
        less = replace(job.config, loop=replace(job.config.loop, **loop), optim=optim)
        metrics = run_worker(replace(job, config=less), Worker())
        spoil(job)
        return metrics

    return launch


def lose(name: str) -> Callable[[TrainJob], None]:
    return lambda job: (job.output / name).delete()


def clear(folder: Location) -> None:
    for place in folder.list():
        place.delete()


def lose_checkpoints(job: TrainJob) -> None:
    clear(job.checkpoints)


def read_nothing(job: TrainJob) -> None:
    latest = find_latest(job.checkpoints)
    assert latest is not None
    (latest.location / "checkpoint.json").write_json({**latest.facts, "read": {}})


@pytest.mark.parametrize(
    ("launch", "said"),
    [
        (launcher(lambda _: None, num_steps=1), r"model/less@v1 ended at step 1 of 2; run the same command again"),
        (launcher(lose_checkpoints), r"model/less@v1 ended at step 0 of 2"),
        (launcher(read_nothing), r"model/less@v1 took 2 steps and read no token"),
        (launcher(lose("config.json")), r"took all 2 steps and left no config\.json in"),
        (launcher(lose("tokenizer.json")), r"left no tokenizer\.json in"),
        (launcher(lose("model.safetensors")), r"left no weights \(\*\.safetensors\) in"),
    ],
)
def test_a_launcher_that_says_it_succeeded_is_not_believed(
    launch: Any, said: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lisan.train.stages.launch", launch)
    with pytest.raises(TrainingError, match=said) as caught:
        run(CPT, small(store, name="less"))
    assert "\n" not in str(caught.value)
    assert store.versions(Kind.model, "less") == []
    monkeypatch.undo()
    clear(store.checkpoints(Ref.parse("model/less@v1")))


def test_a_run_that_ended_early_goes_on_with_the_same_command(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisan.train.stages.launch", launcher(lose("model.safetensors")))
    with pytest.raises(TrainingError, match="left no weights"):
        run(CPT, small(store, name="early"))
    monkeypatch.undo()
    assert run(CPT, small(store, name="early")).facts["steps"] == 2


def test_a_base_that_changed_in_place_is_noticed(store: Store, trained: Artifact, tmp_path: Path) -> None:
    base = copytree(str(trained.location), tmp_path / "base")
    config = small(store, name="over", model=ModelConfig(path=str(base)))
    assert f"{base}/model.safetensors" in run(CPT, config).manifest["inputs"]
    weights = bytearray((base / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (base / "model.safetensors").write_bytes(weights)
    with pytest.raises(ArtifactError, match=r"model/over@v1 was made before .*/base/model\.safetensors changed"):
        run(CPT, config)


def test_a_metric_is_one_series_of_the_run(store: Store) -> None:
    recorder = Recorder()
    run_stage(CPT, small(store, name="series"), lambda *_: nullcontext(recorder), lambda _: None)
    names = {name for metrics in recorder.steps.values() for name in metrics}
    assert {"train/loss", "train/lr", "tokens_seen", "seconds"} <= names
    assert not [name for name in names if f"train/{name}" in names]


def test_a_run_whose_checkpoint_is_cut_says_so_and_goes_on_without_it(
    store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lisan.train.stages.launch", launcher(lose("model.safetensors")))
    with pytest.raises(TrainingError, match="left no weights"):
        run(CPT, small(store, name="cut"))
    monkeypatch.undo()
    [shard] = Path(store.checkpoints(Ref.parse("model/cut@v1")).full_path).glob("*/__0_0.distcp")
    shard.write_bytes(shard.read_bytes()[:-1])
    assert run(CPT, small(store, name="cut")).facts["steps"] == 2
    assert "checkpoint step_00000002 is damaged: " in capsys.readouterr().out


@pytest.mark.parametrize("stage", [CPT, SFT])
def test_preferences_are_refused_where_text_is_trained(stage: Stage, store: Store, trained: Artifact) -> None:
    config = replace(small(store, name="t"), tokens="tokens/preferences@v1")
    with pytest.raises(ConfigError, match="tokens/preferences@v1 holds preferences; train_dpo needs preferences"):
        run(stage, config)


def test_text_is_refused_where_preferences_are_trained(store: Store, trained: Artifact) -> None:
    config = replace(
        small(store, "preferences", name="t", model=ModelConfig(path="model/trained@v1")), tokens="tokens/documents@v1"
    )
    with pytest.raises(ConfigError, match="tokens/documents@v1 holds documents"):
        run(DPO, config)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"tokens": "tokens/none@v1"}, ArtifactError, "tokens/none@v1 does not exist"),
        ({"tokens": "model/trained@v1"}, ConfigError, "expected a tokens, got model/trained@v1"),
        (
            {"model": ModelConfig(path="model/none@v1")},
            ArtifactError,
            r"model/none@v1 does not exist; models under .*: .*trained",
        ),
        (
            {"tokens": "tokens/en@v1"},
            DataError,
            r"tokens/en@v1 was encoded with another tokenizer than tokenizer/tiny@v1",
        ),
        (
            {"mix": MixConfig(weights={"fr": 1.0})},
            ConfigError,
            r"mix\.weights names fr, but the tokens hold ar_text, en_text",
        ),
        ({"mix": MixConfig(weights={"en_text": 1.0}, max_epochs=0.01)}, ConfigError, r"mix\.max_epochs is 0\.01"),
        (
            {"model": ModelConfig(shape=replace(SHAPE, max_positions=32), tokenizer="tokenizer/tiny@v1")},
            ConfigError,
            r"tokens/documents@v1 has rows of 64 tokens and the model positions for 32; encode with context_length=32",
        ),
        (
            {"cluster": ClusterConfig(num_workers=3)},
            ConfigError,
            r"loop\.step_rows \(8\) must be a multiple of the number of workers \(3\)",
        ),
        (
            {"cluster": ClusterConfig(num_workers=4), "sharding": ShardingConfig(shard_workers=3)},
            ConfigError,
            r"sharding\.shard_workers \(3\) must divide the number of workers \(4\)",
        ),
    ],
)
def test_what_cannot_train_is_refused_before_a_worker_starts(
    changes: dict[str, Any],
    error: type[Exception],
    said: str,
    store: Store,
    trained: Artifact,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lisan.train.stages.launch", lambda _: pytest.fail("a worker started"))
    with pytest.raises(error, match=said) as caught:
        run(CPT, replace(small(store, name="refused"), **changes))
    assert "\n" not in str(caught.value)
    assert not (Path(store.root.root) / "model" / "refused").exists()
    assert not (Path(store.root.root) / "checkpoints" / "refused").exists()


def test_rows_of_which_no_token_is_trained_are_refused_before_a_worker_starts(store: Store) -> None:
    """`encode_tokens` makes none of conversations without replies; artifacts of other makers may be such."""
    sources = {"asked": {"rows": 9, "targets": 0}, "told": {"rows": 9, "targets": 5}}
    tokens: Any = SimpleNamespace(ref="tokens/t@v1", facts={"sources": sources})
    check_targets(small(store), tokens)
    with pytest.raises(DataError, match=r"tokens/t@v1 has no trained token in asked: no reply of an assistant"):
        check_targets(small(store, mix=MixConfig(weights={"asked": 1.0})), tokens)


def test_another_tokenizer_is_refused_even_when_its_ids_fit_into_the_models_rows(
    store: Store, trained: Artifact
) -> None:
    for name in ("en", "enar"):
        model = ModelConfig(path="model/trained@v1", tokenizer=f"tokenizer/{name}@v1")
        assert store.open(Ref.parse(f"tokens/{name}@v1")).facts["vocabulary_size"] < 640
        with pytest.raises(DataError, match="the model's own"):
            run(CPT, replace(small(store, name="refused"), model=model, tokens=f"tokens/{name}@v1"))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tuning": TuningConfig(method=Method.lora)}, r"tuning\.method=lora adapts a model; set model\.path"),
        ({"tuning": TuningConfig(method=Method.embeddings)}, r"tuning\.method=embeddings adapts a model"),
        ({"tuning": TuningConfig(rows=Rows.new)}, r"tuning\.method=full with rows=new adapts a model"),
        ({"float8": True, "precision": Precision.float32}, "float8=true needs precision=bfloat16 or auto, got float32"),
        (
            {"sharding": ShardingConfig(compile=True), "attention": Attention.flash},
            "sharding.compile=true with attention=flash would compile anew for every batch",
        ),
    ],
)
def test_an_impossible_training_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainConfig(name="t", tokens="tokens/t@v1", model=ModelConfig(shape=SHAPE, tokenizer="t"), **values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"beta": 0}, "beta must be > 0"),
        ({"label_smoothing": 0.5}, r"label_smoothing in 0\.\.0\.5"),
        ({"label_smoothing": -0.1}, "got"),
        ({"model": ModelConfig(shape=SHAPE, tokenizer="t")}, r"train_dpo needs model\.path"),
    ],
)
def test_an_impossible_preference_training_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        DpoConfig(**{"name": "t", "tokens": "tokens/t@v1", "model": ModelConfig(path="model/t@v1"), **values})


def test_a_gpu_that_is_not_there_is_refused(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"cluster\.use_gpu is true but this process sees no GPU"):
        run(CPT, replace(small(store, name="gpu"), cluster=ClusterConfig(use_gpu=True)))


def test_the_threads_that_a_config_names_are_those_of_this_process_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lisan.train.stages.run_worker", lambda _, worker: {"threads": worker.threads})
    for threads in (0, 3):
        config = SimpleNamespace(cluster=ClusterConfig(threads_per_worker=threads), runtime=RuntimeConfig())
        job: Any = SimpleNamespace(config=config)
        assert launch(job) == {"threads": threads}


def test_workers_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert share_threads(ClusterConfig(), 3) == 2
    assert share_threads(ClusterConfig(), 9) == 1
    assert share_threads(ClusterConfig(threads_per_worker=5), 3) == 5
    assert share_threads(ClusterConfig(use_gpu=True), 3) == 0


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    return monkeypatch


def test_a_bare_process_is_the_only_worker(environment: pytest.MonkeyPatch) -> None:
    assert worker_from_environment() == Worker()


def test_torchrun_tells_a_worker_who_it_is(environment: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        environment.setenv(name, value)
    worker = worker_from_environment()
    assert (worker.rank, worker.world_size, worker.local_rank, worker.device, worker.is_first) == (
        5,
        8,
        1,
        "cpu",
        False,
    )


def test_a_process_group_lasts_as_long_as_its_run() -> None:
    import torch.distributed as dist

    assert not dist.is_initialized()
    with ProcessGroup(Worker(threads=1)):
        assert dist.get_world_size() == 1
        with ProcessGroup(Worker()):
            pass
        assert dist.is_initialized()  # one that was there before stays
    assert not dist.is_initialized()


def test_a_process_group_ends_with_a_run_that_fails() -> None:
    import torch.distributed as dist

    with pytest.raises(ZeroDivisionError), ProcessGroup(Worker(threads=1)):
        raise ZeroDivisionError
    assert not dist.is_initialized()
