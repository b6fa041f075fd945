"""How the rows of new pieces begin, and the manifest from which they are made again.

In: a base model and what its vocabulary gained, in ids. Out: the model with new rows, and a `NewRows` that says how they
came to be. Always: a row depends on the base, its id and the manifest alone, so that `replay_new_rows` gives the same bits or
says what differs. Written beside weights and adapters as `new_rows.json`.
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
"In safetensors format under another suffix: engines take every `*.safetensors` of a folder for weights of the model."


@dataclass(frozen=True, kw_only=True, slots=True)
class NewRows:
    """What it takes to make the rows of new pieces again over the same base."""

    method: InitMethod
    seed: int = 0
    donor: str | None = None
    tokenizer_hash: str
    "sha256 of the tokenizer.json that the rows are for."
    base_tokenizer_hash: str | None
    rows_after: int
    num_old: int
    "Ids below it are the base's own pieces."
    pieces: dict[int, tuple[int, ...]]
    "The ids of the new rows, and the old ids that spell each."
    neighbours: dict[int, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    "Of method=similarity: old ids with weights."
    donor_ids: tuple[int, ...] = ()
    "Of method=donor: the new ids for which the donor has a row."
    donor_rows: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False, compare=False)
    "Of method=donor: those rows, mapped. They are kept, because the last bits of a least-squares fit are its machine's."
    num_fallbacks: int = 0
    "New rows that took the mean of their old pieces because the method knew nothing of them."
    rows_before: int = 0
    base_hash: str = ""
    "sha256 of the base's fp32 matrices, input then output."
    digests: dict[str, str] = field(default_factory=dict)
    "sha256 of the new fp32 rows as they began, in the order of ids, for each matrix that the model has."


def init_new_rows(model: Any, recipe: NewRows) -> NewRows:
    """Grow the model, fill the new rows, and return the recipe with the base and the rows that it gave."""
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
    found = combine_rows(old, [recipe.neighbours.get(index) or spread(recipe.pieces[index]) for index in ids])
    if recipe.method is InitMethod.donor:
        if not recipe.donor_rows:
            raise DataError(
                f"the new rows came from the donor {recipe.donor} and {DONOR_ROWS} is not beside their manifest; "
                "read them from the model or adapter that they were made for"
            )
        found[np.searchsorted(ids, recipe.donor_ids)] = recipe.donor_rows[name]
    return found


def spread(pieces: Sequence[int]) -> Weights:
    """Return equal weights: a piece said twice weighs twice."""
    return [(piece, 1 / len(pieces)) for piece in pieces]


def _draw_rows(recipe: NewRows, name: str, old: torch.Tensor) -> torch.Tensor:
    """Draw every row from a stream of its own: what else is new does not move it."""
    mean = mean_of_rows(old)
    deviation = mean_of_rows((old - mean).square()).sqrt()
    normal = [
        np.random.default_rng(derive_seed(recipe.seed, "new_rows", name, index)).standard_normal(len(mean), np.float32)
        for index in sorted(recipe.pieces)
    ]
    return torch.from_numpy(np.stack(normal)) * deviation + mean


def replay_new_rows(model: Any, manifest: NewRows) -> None:
    """Grow a base as the manifest says, to the same bits; DataError when the base or the rows are others."""
    check_base(model, manifest)
    _compare(manifest, init_new_rows(model, manifest).digests, "replayed")


def check_base(model: Any, manifest: NewRows) -> None:
    """Refuse a base that is not the one of the manifest; DataError."""
    old = read_matrices(model)
    found = hash_rows(old.values())
    if found != manifest.base_hash:
        raise DataError(
            f"new rows were made over a base of {manifest.rows_before:,} rows with sha256 {manifest.base_hash[:12]}, this model "
            f"has {len(old['input']):,} rows with {found[:12]}; load the base that they were made over"
        )


def check_new_rows(model: Any, manifest: NewRows) -> None:
    """Refuse a grown model whose new rows are no longer those of the manifest."""
    _compare(manifest, hash_new_rows(model, manifest), "as trained")


def hash_new_rows(model: Any, manifest: NewRows) -> dict[str, str]:
    """Return what the digests of the manifest would be if its rows were those that the model has now."""
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
    """Write the manifests of every growth, oldest first; a donor's rows go along with the newest one."""
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
    """Return the manifests that lie in a folder, oldest first; none where no vocabulary grew."""
    place = Path(folder) / MANIFEST
    if not place.exists():
        return ()
    chain = [_read(raw) for raw in json.loads(place.read_bytes())]
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
