"""Initialises the rows of new pieces, and records them in a manifest that reproduces them.

A row depends on the base, its id and the manifest alone, so that `replay_new_rows` gives the same bits or names the difference.
The manifest is written beside weights and adapters as `new_rows.json`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lisan.core.errors import DataError
from lisan.core.seed import derive_seed
from lisan.model.config import InitMethod
from lisan.model.embeddings.resize import (
    Weights,
    combine_rows,
    hash_rows,
    mean_of_rows,
    read_matrices,
    resize_embeddings,
)
from lisan.model.weights.safetensors_files import read_tensors

MANIFEST = "new_rows.json"
DONOR_ROWS = "new_rows.donor"
"Safetensors format under another suffix, because engines load every `*.safetensors` of a folder as weights."


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """Manifest of new rows: reproduces them over the same base."""

    method: InitMethod
    seed: int = 0
    donor: str | None = None
    tokenizer_hash: str
    "sha256 of the expanded tokenizer.json."
    base_tokenizer_hash: str | None
    rows_after: int
    num_old: int
    "Number of the base's pieces: ids below it are old."
    pieces: dict[int, tuple[int, ...]]
    "Ids of the new rows, each with the old ids that spell it."
    neighbours: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    "For method=similarity: old ids with weights."
    donor_ids: tuple[int, ...] = ()
    "For method=donor: new ids with a donor row."
    donor_rows: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    "For method=donor: the mapped rows. Stored, because the last bits of a least-squares fit depend on the machine."
    num_fallbacks: int = 0
    "New rows that took the mean of their old pieces because the method has no data on them."
    rows_before: int = 0
    base_hash: str = ""
    "sha256 of the base's fp32 matrices, input then output."
    digests: dict[str, str] = field(default_factory=dict)
    "sha256 of the initial fp32 rows in the order of ids, for each matrix."


def init_new_rows(model: Any, recipe: NewRows) -> NewRows:
    """Add initialised new rows to the model; return the manifest with hashes of the base and the rows."""
    old, ids = read_matrices(model), sorted(recipe.pieces)
    base_hash, rows_before = hash_rows(old.values()), len(old["input"])
    rows = {name: make_rows(recipe, name, matrix) for name, matrix in old.items()}
    resize_embeddings(model, max(recipe.rows_after, rows_before), ids, rows)
    return replace(
        recipe,
        rows_before=rows_before,
        rows_after=max(recipe.rows_after, rows_before),
        base_hash=base_hash,
        digests={name: hash_rows([matrix]) for name, matrix in rows.items()},
    )


def make_rows(recipe: NewRows, name: str, old: torch.Tensor) -> torch.Tensor:
    """Return the new rows of one matrix [new ids, hidden], by id; `old` is the base's [rows, hidden]."""
    ids = sorted(recipe.pieces)
    match recipe.method:
        case InitMethod.random:
            return _draw_rows(recipe, name, old[: recipe.num_old])
        case InitMethod.global_mean:
            return mean_of_rows(old[: recipe.num_old]).repeat(len(ids), 1)
    found = combine_rows(old, [recipe.neighbours.get(index) or equal_weights(recipe.pieces[index]) for index in ids])
    if recipe.method is InitMethod.donor:
        if not recipe.donor_rows:
            raise DataError(
                f"the new rows came from the donor {recipe.donor} and {DONOR_ROWS} is not beside their manifest; "
                "read them from the model or adapter that they were made for"
            )
        found[np.searchsorted(ids, recipe.donor_ids)] = recipe.donor_rows[name]
    return found


def equal_weights(pieces: Sequence[int]) -> Weights:
    """Return equal weights; a repeated piece counts twice."""
    return [(piece, 1 / len(pieces)) for piece in pieces]


def _draw_rows(recipe: NewRows, name: str, old: torch.Tensor) -> torch.Tensor:
    """Draw every row from its own random stream, independent of the other new rows."""
    mean = mean_of_rows(old)
    deviation = mean_of_rows((old - mean).square()).sqrt()
    normal = [
        np.random.default_rng(derive_seed(recipe.seed, "new_rows", name, index)).standard_normal(len(mean), np.float32)
        for index in sorted(recipe.pieces)
    ]
    return torch.from_numpy(np.stack(normal)) * deviation + mean


def replay_new_rows(model: Any, manifest: NewRows) -> None:
    """Add the manifest's rows to a base, bit for bit; DataError when the base or the rows differ."""
    check_base(model, manifest)
    _compare(manifest, init_new_rows(model, manifest).digests, "replayed")


def check_base(model: Any, manifest: NewRows) -> None:
    """Raise DataError when the base is not the manifest's."""
    old = read_matrices(model)
    found = hash_rows(old.values())
    if found != manifest.base_hash:
        raise DataError(
            f"new rows were made over a base of {manifest.rows_before:,} rows with sha256 {manifest.base_hash[:12]}, this model "
            f"has {len(old['input']):,} rows with {found[:12]}; load the base that they were made over"
        )


def check_new_rows(model: Any, manifest: NewRows) -> None:
    """Raise DataError when the model's new rows differ from the manifest's."""
    _compare(manifest, hash_new_rows(model, manifest), "as trained")


def hash_new_rows(model: Any, manifest: NewRows) -> dict[str, str]:
    """Return the sha256 of the model's current new rows, for each matrix."""
    return {name: hash_rows([matrix[sorted(manifest.pieces)]]) for name, matrix in read_matrices(model).items()}


def _compare(manifest: NewRows, found: Mapping[str, str], when: str) -> None:
    for name in sorted({*manifest.digests, *found}):
        wanted, got = (digests.get(name, "none") for digests in (manifest.digests, found))
        if wanted != got:
            raise DataError(
                f"new rows of the {name} matrix {when} have sha256 {got[:12]}, their manifest says {wanted[:12]}; "
                "read the manifest that was written with this model, with the code of its commit"
            )


def write_new_rows(folder: Path, chain: Sequence[NewRows]) -> None:
    """Write the manifests of all expansions, oldest first, and the donor rows of the newest."""
    if not chain:
        return
    folder.mkdir(parents=True, exist_ok=True)
    plain = [asdict(replace(manifest, donor_rows={})) for manifest in chain]
    for manifest in plain:
        del manifest["donor_rows"]
    (folder / MANIFEST).write_text(json.dumps(plain), encoding="utf-8")
    if chain[-1].donor_rows:
        from safetensors.torch import save_file

        save_file(dict(chain[-1].donor_rows), folder / DONOR_ROWS)


def read_new_rows(folder: Path | str) -> tuple[NewRows, ...]:
    """Return the manifests of a folder, oldest first; empty without an expansion."""
    file = Path(folder) / MANIFEST
    if not file.exists():
        return ()
    chain = [_read(raw) for raw in json.loads(file.read_bytes())]
    if (Path(folder) / DONOR_ROWS).exists():
        chain[-1] = replace(chain[-1], donor_rows=read_tensors(Path(folder) / DONOR_ROWS))
    return tuple(chain)


def _read(raw: Mapping[str, Any]) -> NewRows:
    return NewRows(
        **{
            **raw,
            "method": InitMethod(raw["method"]),
            "pieces": {int(index): tuple(old) for index, old in raw["pieces"].items()},
            "neighbours": {
                int(index): tuple((old, weight) for old, weight in pairs) for index, pairs in raw["neighbours"].items()
            },
            "donor_ids": tuple(raw["donor_ids"]),
        }
    )
