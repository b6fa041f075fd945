"""Old pieces that keep a new one's company, and pieces of two tokenizers that stand for the same bytes."""

import json
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from bilingual import ARABIC, ENGLISH
from hypothesis import given
from hypothesis import strategies as st
from tiny import no_run, silent

from lisan.core.artifact import Ref, Store
from lisan.core.errors import DataError
from lisan.core.seed import stream
from lisan.core.stage import StorageConfig, run_stage
from lisan.tokenizer.expand import neighbours
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.tokenizer.expand.neighbours import (
    WINDOW,
    count_company,
    find_neighbours,
    match_pieces,
    read_neighbours,
    sparsemax,
    write_neighbours,
)
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer

ANIMALS, TOOLS, NEW_ANIMAL, NEW_TOOL = range(10, 14), range(20, 24), 40, 41


def sentences(num: int = 600) -> list[list[int]]:
    """Return sentences in two topics with common words 0..5; 40 is said where animals are, 41 where tools are."""
    random = stream(0, "sentences")
    found = []
    for _ in range(num):
        topic, new, verbs = random.choice([(ANIMALS, NEW_ANIMAL, (30, 31)), (TOOLS, NEW_TOOL, (32, 33))])
        noun = random.choice([*topic, new, new])
        found.append([random.randrange(6), noun, random.choice(verbs), random.randrange(6), random.choice(verbs)])
    return found


def test_a_new_piece_is_near_the_old_ones_that_it_could_stand_for() -> None:
    found = find_neighbours(sentences(), range(34), (NEW_ANIMAL, NEW_TOOL, 50), 4)
    assert set(found) == {NEW_ANIMAL, NEW_TOOL}  # 50 is never said
    assert {index for index, _ in found[NEW_ANIMAL]} <= set(ANIMALS)
    assert {index for index, _ in found[NEW_TOOL]} <= set(TOOLS)
    for pairs in found.values():
        weights = [weight for _, weight in pairs]
        assert sum(weights) == pytest.approx(1, abs=1e-4)
        assert weights == sorted(weights, reverse=True)
        assert min(weights) > 0


def test_the_same_text_gives_the_same_neighbours() -> None:
    assert find_neighbours(sentences(), range(34), (40, 41), 4) == find_neighbours(sentences(), range(34), (40, 41), 4)


def test_what_the_text_does_not_say_is_nobodys_neighbour() -> None:
    said = [ids for ids in sentences() if ANIMALS[0] not in ids]
    found = find_neighbours(said, range(34), (NEW_ANIMAL,), 10)
    assert ANIMALS[0] not in {index for index, _ in found[NEW_ANIMAL]}
    assert find_neighbours([[7, 8]] * 3, range(34), (NEW_ANIMAL,), 4) == {}
    assert find_neighbours([[NEW_ANIMAL]] * 3, range(34), (NEW_ANIMAL,), 4) == {}
    assert find_neighbours([], range(34), (NEW_ANIMAL,), 4) == {}


def test_company_is_counted_by_distance_and_not_across_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [[1, 2, 3], [4], list(range(5, 14))]
    counts = count_company(texts).toarray()
    assert (counts == counts.T).all()
    assert (counts[1, 2], counts[2, 3], counts[1, 3]) == (1, 1, 0.5)
    assert counts[3, 4] == counts[4, 5] == counts[4].sum() == 0
    assert (counts[5, 5 + WINDOW], counts[5, 6 + WINDOW]) == (1 / WINDOW, 0)
    monkeypatch.setattr(neighbours, "CHUNK_TOKENS", 1)
    assert np.array_equal(count_company(texts).toarray(), counts)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=20))
def test_sparsemax_is_the_nearest_point_of_the_simplex(scores: list[float]) -> None:
    """Nearest: what is kept is shifted by one number, and what is dropped lay below it (the optimality conditions)."""
    ordered = np.array(sorted(scores, reverse=True))
    weights = sparsemax(ordered)
    assert weights.sum() == pytest.approx(1)
    shift = (ordered - weights)[weights > 0]
    assert np.allclose(shift, shift[0])
    assert (ordered[weights == 0] <= shift[0] + 1e-9).all()


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny corpus with a tokenizer of English and its Arabic expansion."""
    root = tmp_path_factory.mktemp("neighbours")
    copytree(Path(tiny_store.root.root) / "corpus", root / "corpus")
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    for config in (
        TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common),
        TokenizerConfig(name="enar", base="tokenizer/en@v1", sources=("ar_text",), num_pieces=150, **common),
    ):
        run_stage(TOKENIZER, config, no_run, silent)
    return Store(str(root))


@pytest.fixture
def enar(store: Store, tmp_path: Path) -> Path:
    return copytree(store.open(Ref.parse("tokenizer/enar@v1")).location.local_folder(), tmp_path / "enar")


def test_neighbours_lie_beside_the_tokenizer(enar: Path) -> None:
    expansion = load_expansion(enar)
    texts = [f"{english} {arabic}" for english in ENGLISH for arabic in ARABIC]
    counts = write_neighbours(enar, texts, 6)
    found = read_neighbours(enar, expansion.hash)
    assert len(found) == counts["with_neighbours"] > 0
    assert counts["with_neighbours"] + counts["without_neighbours"] == len(expansion.new_ids)
    assert set(found) <= set(expansion.new_ids)
    for pairs in found.values():
        assert 1 <= len(pairs) <= 6
        assert all(index < expansion.base_size for index, _ in pairs)


def test_a_text_of_one_language_only_has_no_neighbours_to_give(enar: Path) -> None:
    with pytest.raises(
        DataError, match=r"no new piece of .* keeps company with an old one in the text; give text in both"
    ):
        write_neighbours(enar, [ENGLISH[0]], 6)


def test_neighbours_that_are_missing_or_another_tokenizers_are_refused(enar: Path) -> None:
    hash_ = load_expansion(enar).hash
    with pytest.raises(
        DataError, match=r"method=similarity, but .* holds no neighbours\.json; expand the tokenizer with"
    ):
        read_neighbours(enar, hash_)
    (enar / "neighbours.json").write_text(json.dumps({"hash": "other", "neighbours": {}}))
    with pytest.raises(DataError, match=r"holds the neighbours\.json of another tokenizer"):
        read_neighbours(enar, hash_)


def test_pieces_are_matched_by_their_bytes(store: Store, tokenizer: Any) -> None:
    ours, base = (load_tokenizer(store.open(Ref.parse(f"tokenizer/{name}@v1"))) for name in ("enar", "en"))
    assert match_pieces(ours, base) == {index: index for index in range(len(base))}
    matches = match_pieces(ours, tokenizer)  # learned on both languages by itself: the same pieces under other ids
    assert any(mine != other for mine, other in matches.items())
    assert any(mine >= len(base) for mine in matches)
    for mine, other in matches.items():
        assert ours.convert_ids_to_tokens(mine) == tokenizer.convert_ids_to_tokens(other)


def test_a_piece_means_the_same_in_byte_letters_and_in_sentencepieces() -> None:
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    pieces = {"<unk>": 0, "<0xD8>": 1, "<0x41>": 2, "A": 3, "\u2581\u0641\u064a": 4}
    spelt = Tokenizer(models.BPE(vocab=pieces, merges=[], unk_token="<unk>", byte_fallback=True))
    spelt.decoder = decoders.Metaspace()
    letters = Tokenizer(models.BPE(vocab={"A": 0, "\u0120\u00d9\u0123\u00d9\u012c": 1, "\u00d8": 2, "B": 3}, merges=[]))
    letters.decoder = decoders.ByteLevel()
    ours, theirs = (PreTrainedTokenizerFast(tokenizer_object=one) for one in (letters, spelt))
    assert match_pieces(ours, theirs) == {0: 3, 1: 4, 2: 1}
