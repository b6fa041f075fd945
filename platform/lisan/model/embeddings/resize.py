"""Resizes the embedding matrices by explicit ids, combines rows, and hashes them.

Old rows keep every bit and tied matrices stay tied. Sums run element by element in one fixed order, so that every machine and
every number of threads gives the same bits.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from lisan.core.errors import DataError

Weights = Sequence[tuple[int, float]]
"Ids and the weight of each."


def read_matrices(model: Any) -> dict[str, torch.Tensor]:
    """Return the fp32 embedding matrices [rows, hidden] on the CPU: `input`, and `output` unless they are tied.

    With a sharded model, every rank calls it.
    """
    layers = {"input": model.get_input_embeddings()} | (
        {} if is_tied(model) else {"output": model.get_output_embeddings()}
    )
    return {name: gather(cast(torch.Tensor, layer.weight)).float() for name, layer in layers.items()}


def gather(parameter: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor on the CPU; with a sharded one, every rank calls it."""
    whole = parameter.detach()
    return (whole.full_tensor() if isinstance(whole, DTensor) else whole).cpu()


def is_tied(model: Any) -> bool:
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def resize_embeddings(model: Any, num_rows: int, ids: Sequence[int], rows: Mapping[str, torch.Tensor]) -> None:
    """Enlarge the matrices to `num_rows` rows and write `rows[matrix]` [ids, hidden] at `ids`.

    An id may be an existing row, because bases are padded. Added rows outside `ids` are padding and get the mean of all rows.
    """
    was_tied, inner, outer = is_tied(model), model.get_input_embeddings(), model.get_output_embeddings()
    _enlarge(inner, num_rows, ids, rows["input"])
    inner.num_embeddings = num_rows
    if was_tied:
        outer.weight = inner.weight
    else:
        _enlarge(outer, num_rows, ids, rows["output"])
    outer.out_features = num_rows
    model.config.vocab_size = num_rows


def _enlarge(layer: nn.Module, num_rows: int, ids: Sequence[int], new: torch.Tensor) -> None:
    """Give a layer a larger matrix. Keeps the layer's class: Gemma 3 has its own, which scales embeddings."""
    if getattr(layer, "bias", None) is not None:
        raise DataError(
            "the model's output layer has a bias, and a new piece would have none; choose a base without one"
        )
    old = cast(torch.Tensor, layer.weight).detach()
    rows = torch.empty(num_rows, old.shape[1], dtype=old.dtype)
    rows[: len(old)] = old
    rows[len(old) :] = mean_of_rows(old.float()).to(old.dtype)
    rows[list(ids)] = new.to(old.dtype)
    layer.weight = nn.Parameter(rows)


def mean_of_rows(rows: torch.Tensor) -> torch.Tensor:
    """Return the mean [hidden] of rows, summed by halves, because the order of a torch reduction is not fixed."""
    num_rows = len(rows)
    while len(rows) > 1:
        half = len(rows) // 2
        folded = rows[:half] + rows[half : 2 * half]
        if len(rows) % 2:
            folded[0] += rows[-1]
        rows = folded
    return rows[0] / num_rows


def combine_rows(matrix: torch.Tensor, parts: Sequence[Weights]) -> torch.Tensor:
    """Return for each of `parts` the weighted sum of the matrix's rows, added in the order given.

    Worked example: [(4, 0.5), (7, 0.5)] is the mean of rows 4 and 7.
    """
    found = torch.zeros(len(parts), matrix.shape[1])
    for position in range(max(map(len, parts), default=0)):
        longer = [index for index, part in enumerate(parts) if len(part) > position]
        ids, weights = zip(*(parts[index][position] for index in longer), strict=True)
        found[longer] += torch.tensor(weights)[:, None] * matrix[list(ids)]
    return found


def hash_rows(rows: Iterable[torch.Tensor]) -> str:
    """Return the sha256 of the bytes of fp32 tensors, one after the other."""
    digest = hashlib.sha256()
    for tensor in rows:
        assert tensor.dtype is torch.float32
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
