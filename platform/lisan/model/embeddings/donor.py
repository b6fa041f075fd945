"""Initialises new rows from a donor: another model that has the pieces, its rows mapped into the base's space.

One linear map for each matrix, fitted on the pieces that both models have (Jais-adapted, Gosal et al. 2024, 2407.12869).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from lisan.core.errors import DataError
from lisan.model.embeddings.new_rows import NewRows, hash_new_rows
from lisan.model.embeddings.resize import read_matrices


def project_donor(model: Any, donor: Any, matches: Mapping[int, int], recipe: NewRows) -> NewRows:
    """Map the donor's rows into the model's space by least squares over the pieces that both have.

    `matches` gives the donor's id for ids of the expanded vocabulary. A tied donor gives one matrix for both of an untied model.
    """
    width = donor.get_input_embeddings().weight.shape[1]
    shared = [(ours, theirs) for ours, theirs in sorted(matches.items()) if ours < recipe.num_old]
    new = [(ours, theirs) for ours, theirs in sorted(matches.items()) if ours in recipe.pieces]
    if len(shared) < width or not new:
        raise DataError(
            f"model.new_rows.donor {recipe.donor} shares {len(shared):,} pieces with the base and {len(new):,} with the new ones; "
            f"at least {width:,} (its hidden size) and 1 are needed to map its rows; choose another donor or method"
        )
    theirs = {name: matrix.double() for name, matrix in read_matrices(donor).items()}
    rows = {}
    for name, matrix in read_matrices(model).items():
        source = theirs.get(name, theirs["input"])
        fit = torch.linalg.lstsq(source[[b for _, b in shared]], matrix[[a for a, _ in shared]].double())
        rows[name] = (source[[b for _, b in new]] @ fit.solution).float()
    donor_ids = tuple(ours for ours, _ in new)
    return replace(recipe, donor_ids=donor_ids, donor_rows=rows, num_fallbacks=len(recipe.pieces) - len(donor_ids))


def keep_donor_rows(model: Any, manifest: NewRows) -> NewRows:
    """Return the manifest with the model's current rows as the donor's rows."""
    rows = {name: matrix[list(manifest.donor_ids)].clone() for name, matrix in read_matrices(model).items()}
    return replace(manifest, donor_rows=rows, digests=hash_new_rows(model, manifest))
