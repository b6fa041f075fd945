"""How the rows of new pieces begin, what their manifest keeps, and how it is replayed."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, make_model

from lisan.core.errors import ConfigError, DataError
from lisan.model.config import InitMethod, ModelConfig, RowInitConfig
from lisan.model.embeddings.donor import keep_donor_rows, project_donor
from lisan.model.embeddings.new_rows import (
    NewRows,
    check_new_rows,
    init_new_rows,
    read_new_rows,
    replay_new_rows,
    write_new_rows,
)
from lisan.model.embeddings.resize import mean_of_rows, read_matrices

NUM_OLD = 44
"Of the base's 50 rows, the last 6 are padding; 45 and 47 take some of it."
PIECES = {45: (4, 4, 7), 47: (9,), 50: (1, 2), 61: (3, 5, 8)}
RECIPE = NewRows(
    method=InitMethod.mean,
    tokenizer_hash="t",
    base_tokenizer_hash="b",
    rows_after=64,
    num_old=NUM_OLD,
    pieces=PIECES,
)
MATCHES = {**{index: 60 - index for index in range(40)}, 45: 61, 61: 5, 999: 1}
"Ids of a donor of 64 rows; it has nothing for 47 and 50."


def make(tie: bool, seed: int = 0, rows: int = 50, hidden: int = 32) -> Any:
    shape = replace(SHAPE, tie_embeddings=tie, hidden_size=hidden)
    return make_model(ModelConfig(shape=shape, tokenizer="t", init_std=0.5), rows, {}, seed)


def recipe_of(method: InitMethod, tie: bool) -> NewRows:
    changes: dict[str, Any] = {"method": method}
    if method is InitMethod.random:
        changes["seed"] = 5
    if method is InitMethod.similarity:
        changes |= {"neighbours": {45: ((0, 0.75), (6, 0.25)), 61: ((2, 1.0),)}, "num_fallbacks": 2}
    if method is InitMethod.donor:
        donor = make(tie, seed=1, rows=64, hidden=16)
        return project_donor(make(tie), donor, MATCHES, replace(RECIPE, method=method, donor="d"))
    return replace(RECIPE, **changes)


def grow(method: InitMethod, tie: bool) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], NewRows]:
    """Return a base's matrices, those after the growth, and the manifest."""
    model = make(tie)
    before = {name: matrix.clone() for name, matrix in read_matrices(model).items()}
    manifest = init_new_rows(model, recipe_of(method, tie))
    return before, read_matrices(model), manifest


EACH = [
    pytest.param(method, tie, id=f"{method}-{'tied' if tie else 'untied'}")
    for method in InitMethod
    for tie in (True, False)
]


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_old_rows_stay_and_padding_is_the_mean_of_all(method: InitMethod, tie: bool) -> None:
    before, after, _ = grow(method, tie)
    kept = [index for index in range(50) if index not in PIECES]
    padding = [index for index in range(50, 64) if index not in PIECES]
    for name, matrix in after.items():
        assert len(matrix) == 64
        assert torch.equal(matrix[kept], before[name][kept])
        assert torch.equal(matrix[padding], mean_of_rows(before[name]).expand(len(padding), -1))


@pytest.mark.parametrize("tie", [True, False])
def test_the_mean_weighs_a_piece_said_twice_twice(tie: bool) -> None:
    before, after, _ = grow(InitMethod.mean, tie)
    for name, old in before.items():
        assert torch.allclose(after[name][45], (2 * old[4] + old[7]) / 3)
        assert torch.equal(after[name][47], old[9])
        assert torch.allclose(after[name][61], (old[3] + old[5] + old[8]) / 3)


@pytest.mark.parametrize("tie", [True, False])
def test_the_global_mean_leaves_the_bases_padding_out(tie: bool) -> None:
    before, after, _ = grow(InitMethod.global_mean, tie)
    for name, old in before.items():
        assert torch.allclose(after[name][list(PIECES)], old[:NUM_OLD].mean(0).expand(4, -1), atol=1e-6)


def test_random_rows_are_spread_as_the_old_ones() -> None:
    model = make(False)
    with torch.no_grad():
        for layer, scale in ((model.get_input_embeddings(), 1.0), (model.get_output_embeddings(), 3.0)):
            layer.weight.mul_(torch.linspace(0.1, 2, 32) * scale).add_(torch.linspace(-1, 1, 32))
            layer.weight[NUM_OLD:] = 100.0  # padding says nothing
    old = {name: matrix[:NUM_OLD].clone() for name, matrix in read_matrices(model).items()}
    many = dict.fromkeys(range(50, 4050), (1,))
    init_new_rows(model, replace(RECIPE, method=InitMethod.random, rows_after=4050, pieces=many))
    for name, matrix in read_matrices(model).items():
        drawn = matrix[50:]
        error = old[name].std(0, correction=0) / 4000**0.5
        assert ((drawn.mean(0) - old[name].mean(0)).abs() < 5 * error).all()
        assert torch.allclose(drawn.std(0), old[name].std(0, correction=0), rtol=0.06)


def test_a_random_row_depends_on_seed_id_and_matrix_alone() -> None:
    def rows(pieces: dict[int, tuple[int, ...]], seed: int = 5) -> dict[str, torch.Tensor]:
        model = make(False)
        init_new_rows(model, replace(RECIPE, method=InitMethod.random, seed=seed, pieces=pieces))
        return read_matrices(model)

    many, one = rows(PIECES), rows({61: (1,)})
    assert all(torch.equal(many[name][61], one[name][61]) for name in many)
    assert not torch.allclose(many["input"][61], many["input"][50], atol=0.1)
    assert not torch.allclose(many["input"][61], many["output"][61], atol=0.1)
    assert not torch.allclose(rows({61: (1,)}, seed=6)["input"][61], one["input"][61], atol=0.1)


@pytest.mark.parametrize("tie", [True, False])
def test_similar_pieces_give_their_rows_by_weight_and_the_rest_takes_the_mean(tie: bool) -> None:
    before, after, manifest = grow(InitMethod.similarity, tie)
    for name, old in before.items():
        assert torch.allclose(after[name][45], 0.75 * old[0] + 0.25 * old[6])
        assert torch.equal(after[name][61], old[2])
        assert torch.allclose(after[name][50], (old[1] + old[2]) / 2)
    assert manifest.num_fallbacks == 2


@pytest.mark.parametrize("tie", [True, False])
def test_a_donor_whose_space_is_a_linear_image_gives_its_rows_exactly(tie: bool) -> None:
    """Where the base is the donor's rows times a matrix, the fit finds that matrix and so the rows that the base lacks."""
    donor, base = make(tie, seed=1, rows=64, hidden=16), make(tie)
    image = torch.randn(16, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, theirs in read_matrices(donor).items():
            layer = base.get_input_embeddings() if name == "input" else base.get_output_embeddings()
            for ours, index in MATCHES.items():
                if ours < NUM_OLD:
                    layer.weight[ours] = theirs[index] @ image
    recipe = project_donor(base, donor, MATCHES, replace(RECIPE, method=InitMethod.donor, donor="d"))
    assert (recipe.donor_ids, recipe.num_fallbacks) == ((45, 61), 2)
    old = {name: matrix.clone() for name, matrix in read_matrices(base).items()}
    init_new_rows(base, recipe)
    for name, matrix in read_matrices(base).items():
        theirs = read_matrices(donor)[name]
        assert torch.allclose(matrix[45], theirs[61] @ image, atol=1e-4)
        assert torch.allclose(matrix[61], theirs[5] @ image, atol=1e-4)
        assert torch.allclose(matrix[50], (old[name][1] + old[name][2]) / 2)


def test_a_tied_donor_serves_both_matrices_of_an_untied_base() -> None:
    recipe = project_donor(
        make(False), make(True, rows=64, hidden=16), MATCHES, replace(RECIPE, method=InitMethod.donor, donor="d")
    )
    assert {name: rows.shape for name, rows in recipe.donor_rows.items()} == {"input": (2, 32), "output": (2, 32)}


def test_a_donor_that_shares_too_little_is_refused() -> None:
    few = {0: 1, 1: 2, 45: 3}
    with pytest.raises(DataError, match=r"donor d shares 2 pieces with the base and 1 with the new ones; at least 16"):
        project_donor(make(True), make(True, rows=64, hidden=16), few, replace(RECIPE, donor="d"))


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_a_replay_gives_the_same_bits_from_the_file_alone(method: InitMethod, tie: bool, tmp_path: Path) -> None:
    model = make(tie)
    manifest = init_new_rows(model, recipe_of(method, tie))
    write_new_rows(tmp_path, [manifest])
    [read] = read_new_rows(tmp_path)
    assert read == manifest
    again = make(tie)
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    replay_new_rows(again, read)
    torch.set_num_threads(threads)
    for name, matrix in read_matrices(model).items():
        assert torch.equal(matrix, read_matrices(again)[name])
    check_new_rows(again, read)


@pytest.mark.parametrize("method", InitMethod)
def test_a_replay_over_another_base_is_refused(method: InitMethod) -> None:
    _, _, manifest = grow(method, True)
    other = make(True)
    with torch.no_grad():
        other.get_input_embeddings().weight[30, 1] += 1e-6  # a row that no new piece is made of
    with pytest.raises(DataError, match=r"made over a base of 50 rows with sha256 .*, this model has 50 rows with"):
        replay_new_rows(other, manifest)
    assert len(read_matrices(other)["input"]) == 50


@pytest.mark.parametrize(
    "change",
    [{"pieces": {**PIECES, 50: (1, 3)}}, {"method": InitMethod.random, "seed": 1}, {"digests": {"input": "0" * 64}}],
)
def test_a_manifest_that_was_changed_is_refused(change: dict[str, Any]) -> None:
    _, _, manifest = grow(InitMethod.mean, True)
    with pytest.raises(DataError, match=r"new rows of the input matrix replayed have sha256 .*, their manifest says"):
        replay_new_rows(make(True), replace(manifest, **change))


def test_a_model_whose_matrices_are_tied_otherwise_is_refused() -> None:
    _, _, manifest = grow(InitMethod.mean, False)
    with pytest.raises(DataError, match="made over a base of 50 rows"):
        replay_new_rows(make(True), manifest)


def test_rows_that_moved_are_noticed() -> None:
    model = make(True)
    manifest = init_new_rows(model, RECIPE)
    check_new_rows(model, manifest)
    with torch.no_grad():
        model.get_input_embeddings().weight[47, 0] += 1
    with pytest.raises(DataError, match="input matrix as trained"):
        check_new_rows(model, manifest)


def test_a_donors_rows_are_needed_to_replay(tmp_path: Path) -> None:
    _, _, manifest = grow(InitMethod.donor, True)
    write_new_rows(tmp_path, [manifest])
    (tmp_path / "new_rows.donor").unlink()
    [read] = read_new_rows(tmp_path)
    with pytest.raises(DataError, match=r"came from the donor d and new_rows\.donor is not beside"):
        replay_new_rows(make(True), read)


def test_a_donors_rows_can_be_kept_as_a_model_has_them() -> None:
    model = make(True)
    manifest = init_new_rows(model, recipe_of(InitMethod.donor, True))
    with torch.no_grad():
        model.get_input_embeddings().weight[45] += 1e-7  # as another machine might have rounded it
    kept = keep_donor_rows(model, manifest)
    again = make(True)
    replay_new_rows(again, kept)
    assert torch.equal(again.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_chain_is_kept_in_order(tmp_path: Path) -> None:
    model = make(True)
    first = init_new_rows(model, RECIPE)
    second = init_new_rows(
        model, replace(RECIPE, rows_after=128, num_old=62, pieces={62: (45, 61), 100: (50,)}, tokenizer_hash="u")
    )
    write_new_rows(tmp_path, [first, second])
    assert read_new_rows(tmp_path) == (first, second)
    assert (second.rows_before, second.rows_after) == (64, 128)
    replayed = make(True)
    for manifest in read_new_rows(tmp_path):
        replay_new_rows(replayed, manifest)
    assert torch.equal(replayed.get_input_embeddings().weight, model.get_input_embeddings().weight)


def test_a_folder_without_growth_has_no_manifest(tmp_path: Path) -> None:
    write_new_rows(tmp_path, [])
    assert not list(tmp_path.iterdir())
    assert read_new_rows(tmp_path) == ()
    assert read_new_rows("org/model") == ()


def test_the_manifest_says_all_but_the_tensors(tmp_path: Path) -> None:
    write_new_rows(tmp_path, [grow(InitMethod.mean, False)[2]])
    [plain] = json.loads((tmp_path / "new_rows.json").read_bytes())
    assert set(plain) == {field.name for field in fields(NewRows)} - {"donor_rows"}
    assert plain["pieces"] == {str(index): list(old) for index, old in PIECES.items()}
    assert (plain["rows_before"], plain["rows_after"], set(plain["digests"])) == (50, 64, {"input", "output"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"donor": "model/d@v1"}, r"model\.new_rows\.donor is model/d@v1 with method=mean; set it with method=donor"),
        ({"method": InitMethod.donor}, r"model\.new_rows\.donor is None with method=donor"),
        ({"seed": 3}, r"model\.new_rows\.seed is 3, but method=mean is not random"),
    ],
)
def test_an_option_without_effect_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        RowInitConfig(**values)
