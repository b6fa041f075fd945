"""Places on a local disk and, through a server that speaks S3, on an object store: files, stages, a training run."""

import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pyarrow.fs import LocalFileSystem, SubTreeFileSystem
from safetensors.torch import load_file
from tiny import ALONE, encode, make_store, no_run, train_alone, train_config, weights

from lisan.cluster.worker import Worker
from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import ArtifactError, ConfigError
from lisan.core.stage import run_stage
from lisan.core.storage import Location, check_root, default_root
from lisan.data.config import MixConfig
from lisan.evaluate.config import EvalConfig, TaskConfig, TaskKind
from lisan.evaluate.run_evals import EVALS
from lisan.model.config import ModelConfig
from lisan.records.kinds import RecordKind
from lisan.tokenizer.tokenizer import load_tokenizer
from lisan.train.stages import CPT, SFT


@pytest.fixture(params=["local", "s3"])
def place(request: Any, tmp_path: Path) -> Location:
    root = str(tmp_path / "root") if request.param == "local" else request.getfixturevalue("bucket")
    return Location(root)


def test_written_bytes_are_read_back(place: Location) -> None:
    file = place / "a" / "b.bin"
    assert not file.exists()
    file.write_bytes(b"\x00\xff")
    assert file.exists()
    assert file.read_bytes() == b"\x00\xff"
    (place / "j.json").write_json({"لسان": [1, None]})
    assert (place / "j.json").read_json() == {"لسان": [1, None]}


def test_a_file_is_replaced_as_a_whole(place: Location) -> None:
    (place / "f").write_bytes(b"long before")
    (place / "f").write_bytes(b"short")
    assert (place / "f").read_bytes() == b"short"
    assert [entry.name for entry in place.list()] == ["f"]


def test_a_folder_lists_its_entries_by_name_and_walks_its_files_by_path(place: Location) -> None:
    for name in ("b/2", "b/1", "a", "c/d/e"):
        (place / name).write_bytes(name.encode())
    assert [entry.name for entry in place.list()] == ["a", "b", "c"]
    assert [(file.relative_to(place), size) for file, size in place.walk()] == [
        ("a", 1),
        ("b/1", 3),
        ("b/2", 3),
        ("c/d/e", 5),
    ]


def test_a_missing_folder_is_empty_and_can_be_deleted(place: Location) -> None:
    nothing = place / "nothing"
    assert nothing.list() == []
    assert list(nothing.walk()) == []
    nothing.delete()


def test_deleting_takes_a_folder_and_leaves_its_neighbour(place: Location) -> None:
    (place / "x" / "y" / "f").write_bytes(b"1")
    (place / "xx").write_bytes(b"2")
    (place / "x").delete()
    assert not (place / "x" / "y" / "f").exists()
    assert (place / "xx").read_bytes() == b"2"
    (place / "xx").delete()
    assert place.list() == []


def test_a_folder_is_uploaded_and_fetched(place: Location, tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "f").write_bytes(b"1")
    (place / "up").upload(source)
    assert ((place / "up").local_folder() / "deep" / "f").read_bytes() == b"1"


def test_a_folder_that_is_made_while_it_is_listed_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several workers one makes the folder in which all look for a checkpoint."""
    (tmp_path / "a").write_bytes(b"1")
    real, looks = Location(str(tmp_path)).file_system, []

    def look(selector: Any) -> Any:
        looks.append(selector)
        if len(looks) == 1:
            raise FileNotFoundError(2, "Cannot list directory")
        return real.get_file_info(selector)

    monkeypatch.setattr(Location, "file_system", SimpleNamespace(get_file_info=look))
    assert [place.name for place in Location(str(tmp_path)).list()] == ["a"]


def test_a_location_travels_by_pickle(place: Location) -> None:
    (place / "f").write_bytes(b"1")
    again = pickle.loads(pickle.dumps(place / "f"))
    assert again == place / "f"
    assert again.read_bytes() == b"1"


def test_a_local_location_reads_as_its_path(tmp_path: Path) -> None:
    assert str(Location(str(tmp_path)) / "a" / "b") == f"{tmp_path}/a/b"
    assert Location(str(tmp_path)).is_local


def test_a_remote_location_reads_as_a_uri_without_its_settings(bucket: str) -> None:
    place = Location(bucket) / "model" / "x"
    assert str(place) == bucket.split("?", maxsplit=1)[0] + "/model/x"
    assert not place.is_local


def test_a_place_is_found_again_by_its_text(place: Location) -> None:
    (place / "model" / "x").write_bytes(b"1")
    assert place.resolve(str(place / "model" / "x")).read_bytes() == b"1"
    assert place.resolve(str(place)) == place


def test_a_text_that_is_not_below_a_place_stands_for_itself(bucket: str) -> None:
    place = Location(bucket)
    beside = f"{place}-beside/x"
    assert place.resolve(beside) == Location(beside)
    with_settings = f"{place}/x?region=eu-west-1"
    assert place.resolve(with_settings) == Location(with_settings)
    assert place.resolve("/x") == Location("/x")


def test_a_bucket_that_does_not_exist_is_one_sentence_without_the_keys(bucket: str) -> None:
    check_root(bucket)
    name = bucket.removeprefix("s3://").partition("/")[0].partition("?")[0]
    missing = bucket.replace(f"s3://{name}", "s3://me:hush@no-such-bucket")
    with pytest.raises(ConfigError, match=r"s3://\*\*\*@no-such-bucket.*there is no bucket") as caught:
        check_root(missing)
    assert "hush" not in str(caught.value)


def test_a_store_that_does_not_answer_is_one_sentence_without_the_keys() -> None:
    with pytest.raises(ConfigError, match=r"storage\.root s3://\*\*\*@b/x.* cannot be reached") as caught:
        check_root("s3://me:hush@b/x?endpoint_override=127.0.0.1:9&scheme=http&region=us-east-1")
    assert "hush" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_in_the_root_is_not_in_the_text(bucket: str) -> None:
    place = Location(bucket.replace("s3://", "s3://me:hush@"))
    (place / "x").write_bytes(b"1")
    assert "hush" not in str(place / "x")
    assert place.resolve(str(place / "x")).read_bytes() == b"1"


@pytest.mark.parametrize("folder", ["/lisan", "/"])
def test_the_text_of_a_place_on_hdfs_names_its_node(
    folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file system with absolute paths below a node; libhdfs itself needs Java."""
    (tmp_path / "node").mkdir()
    far = SubTreeFileSystem(str(tmp_path / "node"), LocalFileSystem())
    monkeypatch.setenv("LISAN_CACHE", str(tmp_path / "cache"))
    place = Location(f"hdfs://me@node:8020{folder}?replication=1")
    with monkeypatch.context() as patched:
        patched.setattr("pyarrow.fs.FileSystem", SimpleNamespace(from_uri=lambda _: (far, folder)))
        assert not place.is_local
    (place / "model" / "x").write_bytes(b"1")
    assert str(place / "model") == f"hdfs://node:8020{folder.rstrip('/')}/model"
    assert place.resolve(str(place / "model")) == place / "model"
    fetched = (place / "model").local_folder()
    assert fetched.is_relative_to(tmp_path / "cache")
    assert (fetched / "x").read_bytes() == b"1"


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = Location(str(tmp_path)) / "f"
    file.write_bytes(b"old")
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        file.write_bytes(b"new")
    monkeypatch.undo()
    assert file.read_bytes() == b"old"


def test_uploading_a_folder_onto_itself_is_a_no_op(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1")
    Location(str(tmp_path)).upload(tmp_path)
    assert (tmp_path / "f").read_bytes() == b"1"


@pytest.mark.parametrize("root", ["relative/folder", "ftp://host/path", "s4://bucket"])
def test_a_root_that_cannot_be_is_one_sentence(root: str) -> None:
    with pytest.raises(ConfigError, match=rf"storage\.root.*{root.split('?', maxsplit=1)[0]}") as caught:
        check_root(root)
    assert "\n" not in str(caught.value)


def test_the_root_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISAN_HOME", "/elsewhere")
    assert default_root() == "/elsewhere"
    monkeypatch.delenv("LISAN_HOME")
    assert default_root() == str(Path.home() / "lisan")


def test_a_changed_object_is_fetched_again(bucket: str) -> None:
    place = Location(bucket) / "model"
    (place / "weights").write_bytes(b"first")
    assert (place.local_folder() / "weights").read_bytes() == b"first"
    place.delete()
    (place / "weights").write_bytes(b"another")
    assert (place.local_folder() / "weights").read_bytes() == b"another"


def test_an_unchanged_object_is_fetched_once(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place = Location(bucket) / "model"
    (place / "weights").write_bytes(b"first")
    fetched = place.local_folder()
    monkeypatch.setattr("pyarrow.fs.copy_files", lambda *_, **__: pytest.fail("fetched again"))
    assert place.local_folder() == fetched


def test_processes_that_fetch_at_once_do_not_disturb_each_other(bucket: str) -> None:
    place = Location(bucket) / "model"
    for index in range(5):
        (place / f"part-{index}").write_bytes(bytes([index]) * 1000)
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: place.local_folder(), range(4)))
    assert len(set(folders)) == 1
    assert sorted(file.name for file in folders[0].iterdir()) == [f"part-{index}" for index in range(5)]
    assert [entry.name for entry in folders[0].parent.iterdir()] == [folders[0].name]


def test_a_file_is_fetched_alone_and_again_when_it_was_written_again(bucket: str) -> None:
    place = Location(bucket) / "rows"
    (place / "shard").write_bytes(b"first")
    (place / "neighbour").write_bytes(b"other")
    fetched = (place / "shard").local_file()
    with fetched.open("rb") as held:
        assert (place / "shard").local_file() == fetched
        (place / "shard").write_bytes(b"another")
        assert (place / "shard").local_file().read_bytes() == b"another"
        assert held.read() == b"first"
    assert [found.name for found in fetched.parents[1].iterdir()] == ["shard"]


def test_processes_that_fetch_a_file_at_once_find_it_whole(bucket: str) -> None:
    place = Location(bucket) / "shard"
    place.write_bytes(bytes(range(256)) * 10_000)
    with ThreadPoolExecutor(4) as pool:
        files = list(pool.map(lambda _: place.local_file(), range(4)))
    assert len(set(files)) == 1
    assert files[0].read_bytes() == bytes(range(256)) * 10_000
    assert list(files[0].parent.iterdir()) == [files[0]]


def test_a_fetch_that_fails_leaves_nothing(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        (Location(bucket) / "nothing").local_file()
    assert [found for found in (tmp_path / "cache").rglob("*") if found.name.startswith("tmp")] == []


LENIENT = MixConfig(max_epochs=100)


class KilledError(Exception):
    """Stands for a process that dies."""


def test_the_whole_way_on_an_object_store(bucket: str, tmp_path: Path) -> None:
    """Corpus, tokenizer, tokens, a run that is killed and resumed, fine-tuning and a report, all below s3://."""
    store = make_store(bucket, num_records=20)
    corpus = store.open(Ref.parse("corpus/tiny@v1"))
    assert encode(store, RecordKind.documents).manifest == store.open(Ref.parse("tokens/documents@v1")).manifest

    config = train_config(
        store, name="base", loop={"num_steps": 4, "checkpoint_every": 2, "keep_checkpoints": 1}, mix=LENIENT
    )
    model = run_stage(CPT, config, no_run, lambda _: None)
    assert [place.name for place in store.checkpoints(model.ref).list() if place.name.startswith("step")] == [
        "step_00000004"
    ]
    assert run_stage(CPT, config, no_run, lambda _: None).manifest == model.manifest

    chat = train_config(
        store, "conversations", name="chat", model=ModelConfig(path="model/base@v1"), loop={"num_steps": 1}, mix=LENIENT
    )
    tuned = run_stage(SFT, chat, no_run, lambda _: None)
    assert load_tokenizer(tuned).chat_template
    task = TaskConfig(kind=TaskKind.multiple_choice, sources=("en_questions",))
    report = run_stage(
        EVALS,
        EvalConfig(
            name="r",
            model="model/chat@v1",
            corpus=str(corpus.ref),
            tasks={"c": task},
            context_length=128,
            storage=config.storage,
        ),
        no_run,
        lambda _: None,
    )
    assert set(report.facts["metrics"]) == {"c/accuracy", "c/accuracy_stderr"}
    assert store.versions(Kind.model, "chat") == ["v1"]
    with pytest.raises(ArtifactError, match=r"model/base@v7 does not exist; versions: v1"):
        store.open(Ref.parse("model/base@v7"))


def test_a_run_with_checkpoints_on_an_object_store_resumes_bit_for_bit(
    bucket: str, tiny_store: Store, tmp_path: Path
) -> None:
    config = train_config(tiny_store)
    train_alone(tiny_store, config, tmp_path / "whole")
    remote = RemoteFolder(bucket)

    def dies(metrics: Any, checkpoint: str | None) -> None:
        if metrics["step"] == 3:
            raise KilledError

    with pytest.raises(KilledError):
        remote.train(tiny_store, config, replace(ALONE, report=dies))
    assert remote.train(tiny_store, config, ALONE) == [4, 5, 6]
    fetched = (Location(bucket) / "model").local_folder()
    first, second = weights(tmp_path / "whole"), load_file(fetched / "model.safetensors")
    assert all(torch.equal(first[name], second[name]) for name in first)


class RemoteFolder:
    """Checkpoints and model of a run on an object store; its tokens lie on the disk."""

    def __init__(self, root: str) -> None:
        self.root = root

    def train(self, store: Store, config: Any, worker: Worker) -> list[int]:
        """Train and return the steps that were done."""
        from tiny import make_job

        from lisan.train.run import run_worker

        job = make_job(store, config, self.root)
        run_worker(job, worker)
        steps: list[int] = job.run.taken  # type: ignore[attr-defined]
        return steps


def test_a_place_that_is_not_the_root_is_not_called_so() -> None:
    with pytest.raises(ConfigError, match=r"^nowhere://b/x cannot be opened"):
        Location("nowhere://b/x").exists()
