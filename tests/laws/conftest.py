"""What laws of several files share: a store whose tokenizer was expanded, and bases with the tokenizer before."""

from dataclasses import replace
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
from tiny import SHAPE, encode, no_run, silent, train_alone, train_config

from lisan.core.artifact import Store
from lisan.core.stage import StorageConfig, run_stage
from lisan.model.config import ModelConfig
from lisan.records.kinds import RecordKind
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER


@pytest.fixture(scope="session")
def expanded(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a tokenizer of English only, its Arabic expansion, and documents in the pieces of both."""
    root = tmp_path_factory.mktemp("tuning")
    copytree(Path(tiny_store.root.root) / "corpus", root / "corpus")
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    english = TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common)
    arabic = TokenizerConfig(name="enar", base="tokenizer/en@v1", sources=("ar_text",), num_pieces=150, **common)
    for config in (english, arabic):
        run_stage(TOKENIZER, config, no_run, silent)
    store = Store(str(root))
    for name in ("en", "enar"):
        encode(store, RecordKind.documents, f"tokenizer/{name}@v1", name=name)
    return store


@pytest.fixture(scope="session")
def bases(expanded: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Folders of two models of English, one tied and one not."""
    folder = tmp_path_factory.mktemp("bases")
    for tie in (True, False):
        start = ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="tokenizer/en@v1", init_std=0.2)
        train_alone(expanded, train_config(expanded, "en", model=start, loop={"num_steps": 1}), folder / str(tie))
    return {tie: str(folder / str(tie) / "model") for tie in (True, False)}
