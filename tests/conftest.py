"""What the rooms' tests share: the tiny store, its tokenizer, a tiny model."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("LISAN_CACHE", str(Path(tempfile.gettempdir()) / "lisan-tests"))
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)

if TYPE_CHECKING:
    from lisan.core.artifact import Store


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with what starts Ray, which takes longest."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/ray/"))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file, which share fixtures, in one process, and all that start Ray in the same one.

    `--dist loadgroup` does not group under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "ray" if nodeid.startswith("tests/ray/") else nodeid.partition("::")[0]

    return ByFile(config, log)


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """A store with corpus, tokenizer and tokens of every kind; tests only read it and write elsewhere."""
    from tiny import make_store

    return make_store(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tokenizer(tiny_store: "Store") -> Any:
    from lisan.core.artifact import Ref
    from lisan.tokenizer.tokenizer import load_tokenizer

    return load_tokenizer(tiny_store.open(Ref.parse("tokenizer/tiny@v1")))


@pytest.fixture(scope="session")
def base_model(tiny_store: "Store", tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that has seen a few steps of documents."""
    from tiny import train_alone, train_config

    folder = tmp_path_factory.mktemp("base")
    train_alone(tiny_store, train_config(tiny_store), folder)
    return str(folder / "model")


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The address of an S3 server of this process."""
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    host, port = moto.get_host_and_port()
    yield f"{host}:{port}"
    moto.stop()


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The root of an empty bucket, with keys in the environment and a cache of its own."""
    import boto3

    for name, value in (
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        ("LISAN_CACHE", str(tmp_path / "cache")),
    ):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    name = f"b{abs(hash(str(tmp_path))) % 10**12}"
    boto3.client("s3", endpoint_url=f"http://{server}", region_name="us-east-1").create_bucket(Bucket=name)
    return f"s3://{name}/prefix?endpoint_override={server}&scheme=http&region=us-east-1"


@pytest.fixture
def scorer(tokenizer: Any) -> Any:
    """A tiny model of its own, in evaluation mode, whose answers differ clearly from token to token."""
    from tiny import SHAPE, make_model

    from lisan.model.config import ModelConfig
    from lisan.model.score import Scorer

    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t", init_std=0.5), 640, {}, seed=1)
    return Scorer(model).eval()


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """Return a folder with the files of a model, and nothing in them."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    return folder


@pytest.fixture
def taken_listener() -> Iterator[socket.socket]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener


@pytest.fixture
def taken_port(taken_listener: socket.socket) -> int:
    port: int = taken_listener.getsockname()[1]
    return port
