"""Runs over an expansion of which the new rows are trained, for laws of several files."""

from typing import Any

import torch
from tiny import train_config

from lisan.core.artifact import Store
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.embeddings.new_rows import NewRows, replay_new_rows
from lisan.model.load import load_model
from lisan.train.options import Method, Rows, TuningConfig

LORA = LoraConfig(rank=4, alpha=16)
NEW_ROWS = {
    "embeddings": TuningConfig(method=Method.embeddings, rows=Rows.new),
    "lora": TuningConfig(method=Method.lora, rows=Rows.new, lora=LORA),
    "full": TuningConfig(rows=Rows.new),
}


def tuned_config(store: Store, base: str, tuning: TuningConfig, **changes: Any) -> Any:
    """Return a run over an expansion with a weight decay that nobody can overlook."""
    model = ModelConfig(path=base, tokenizer="tokenizer/enar@v1")
    return train_config(store, "enar", model=model, tuning=tuning, optim={"weight_decay": 0.5}, **changes)


def grown(base: str, manifest: NewRows) -> dict[str, torch.Tensor]:
    """Return the weights of a base grown as a manifest says, before anything was trained."""
    model = load_model(base)
    replay_new_rows(model, manifest)
    return dict(model.state_dict())
