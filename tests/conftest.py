"""What the rooms' tests share: the tiny store, its tokenizer, a tiny model."""

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parent / "vocabulary"))  # bilingual.py

os.environ.setdefault("HF_HUB_OFFLINE", "1")
logging.getLogger("c10d-NullHandler-dcp_logger").setLevel(logging.WARNING)

if TYPE_CHECKING:
    from lisan.core.artifact import Store


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> "Store":
    """A store with corpus, tokenizer and tokens of every kind; tests only read it and write elsewhere."""
    from tiny import make_store

    return make_store(str(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="session")
def tokenizer(tiny_store: "Store") -> Any:
    from lisan.core.artifact import Ref
    from lisan.vocabulary.tokenizer import load_tokenizer

    return load_tokenizer(tiny_store.open(Ref.parse("tokenizer/tiny@v1")))


@pytest.fixture(scope="session")
def base_model(tiny_store: "Store", tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a model that has seen a few steps of documents."""
    from tiny import train_alone, train_config

    folder = tmp_path_factory.mktemp("base")
    train_alone(tiny_store, train_config(tiny_store), folder)
    return str(folder / "model")


@pytest.fixture
def scorer(tokenizer: Any) -> Any:
    """A tiny model of its own, in evaluation mode, whose answers differ clearly from token to token."""
    from tiny import SHAPE

    from lisan.model.load import ModelConfig, make_model
    from lisan.model.score import Scorer

    model = make_model(ModelConfig(shape=SHAPE, tokenizer="t", init_std=0.5), 640, {}, seed=1)
    return Scorer(model).eval()
