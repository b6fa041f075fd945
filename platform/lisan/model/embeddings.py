"""Embedding rows for new pieces, by explicit ids.

In: a model, the number of rows wanted, and for each new id the old ids it is made of. Out: the same model, resized.
Always: old rows stay as they are to the last bit, tied matrices stay tied, and every new row is the mean of its old
pieces.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn


def resize_embeddings(model: Any, num_rows: int, pieces: Mapping[int, Sequence[int]]) -> None:
    """Grow the input and output matrices to `num_rows` rows; rows that no piece names (padding) get the mean of all.

    Mean-of-pieces initialisation: Hewitt 2021, ALLaM 2024.
    """
    is_tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model.set_input_embeddings(_grow(model.get_input_embeddings(), num_rows, pieces))
    if is_tied:
        model.tie_weights()
        model.get_output_embeddings().weight = model.get_input_embeddings().weight
    else:
        model.set_output_embeddings(_grow(model.get_output_embeddings(), num_rows, pieces))
    model.get_output_embeddings().out_features = num_rows
    model.config.vocab_size = num_rows


def _grow(layer: nn.Module, num_rows: int, pieces: Mapping[int, Sequence[int]]) -> nn.Module:
    old = cast(torch.Tensor, layer.weight).detach()
    rows = old.mean(0, keepdim=True).repeat(num_rows, 1)
    rows[: len(old)] = old
    for new_id, old_ids in pieces.items():
        rows[new_id] = old[list(old_ids)].mean(0)
    grown: nn.Module
    if isinstance(layer, nn.Embedding):
        grown = nn.Embedding(num_rows, old.shape[1], padding_idx=layer.padding_idx, dtype=old.dtype)
    else:
        grown = nn.Linear(old.shape[1], num_rows, bias=False, dtype=old.dtype)
    grown.weight = nn.Parameter(rows)
    return grown
