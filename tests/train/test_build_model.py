"""From a config to a model in memory, and back to a folder."""

import json
from pathlib import Path
from shutil import copytree
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny import SHAPE, no_run, save_model, train_alone, train_config

from lisan.core.artifact import Artifact, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.model.config import InitMethod, LoraConfig, ModelConfig, RowInitConfig
from lisan.model.embeddings.new_rows import write_new_rows
from lisan.tokenizer.chat.chat_template import end_of_turn_id
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.tokenizer.tokenizer import load_expansion, load_tokenizer, tokenizer_hash
from lisan.train.config import parents_of
from lisan.train.options import Method, TuningConfig
from lisan.train.setup.base_model import Places, check_vocabulary, expansion_for, open_places, prepare_model
from lisan.train.setup.build_model import copy_tokenizer, settle_rows


@pytest.fixture(scope="module")
def store(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny corpus with a tokenizer of English and its Arabic expansion."""
    root = tmp_path_factory.mktemp("outcome")
    copytree(Path(tiny_store.root.root) / "corpus", root / "corpus")
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    for config in (
        TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common),
        TokenizerConfig(name="enar", base="tokenizer/en@v1", sources=("ar_text",), num_pieces=300, **common),
    ):
        run_stage(TOKENIZER, config, no_run, lambda _: None)
    return Store(str(root))


def tokenizer(store: Store, name: str) -> Artifact:
    return store.open(Ref.parse(f"tokenizer/{name}@v1"))


def folder(store: Store, name: str) -> str:
    return tokenizer(store, name).location.full_path


def fresh(store: Store, **changes: Any) -> Any:
    return train_config(store, model=ModelConfig(shape=SHAPE, tokenizer="tokenizer/en@v1"), **changes)


@pytest.fixture(scope="module")
def base(store: Store, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a random model with the English tokenizer."""
    place = tmp_path_factory.mktemp("base")
    adapted = prepare_model(fresh(store), Places("", folder(store, "en")))
    save_model(adapted.model, place, torch.float32)
    copy_tokenizer(folder(store, "en"), place)
    return str(place)


def test_places_are_folders_of_artifacts_and_names_of_everything_else(store: Store) -> None:
    parents = (tokenizer(store, "en"),)
    assert open_places(fresh(store), parents) == Places("", folder(store, "en"))
    elsewhere = SimpleNamespace(model=ModelConfig(path="org/model"))
    assert open_places(elsewhere, ()) == Places("org/model", "org/model")


def test_a_random_model_has_the_rows_that_its_tokenizer_wants(store: Store) -> None:
    model = prepare_model(fresh(store), Places("", folder(store, "en"))).model
    expansion = load_expansion(tokenizer(store, "en"))
    assert model.config.vocab_size == expansion.size >= expansion.num_ids
    assert expansion.size % 128 == 0
    assert model.config.eos_token_id == load_tokenizer(tokenizer(store, "en")).eos_token_id


def test_random_weights_and_adapters_are_the_same_on_every_rank(store: Store, base: str) -> None:
    lora = TuningConfig(method=Method.lora, lora=LoraConfig(rank=2))
    for config, places in (
        (fresh(store), Places("", folder(store, "en"))),
        (train_config(store, model=ModelConfig(path=base), tuning=lora), Places(base, base)),
    ):
        states = []
        for state in (1, 2):
            torch.manual_seed(state)  # whatever the process drew before
            states.append(prepare_model(config, places).model.state_dict())
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_a_model_grows_with_its_tokenizer(store: Store, base: str) -> None:
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    grown = prepare_model(config, Places(base, folder(store, "enar"))).model
    old = prepare_model(train_config(store, model=ModelConfig(path=base)), Places(base, base)).model
    expansion = load_expansion(tokenizer(store, "enar"))
    rows, before = grown.get_input_embeddings().weight, old.get_input_embeddings().weight
    assert len(rows) == expansion.size > len(before)
    new = next(
        piece for piece in expansion.new_ids if piece >= len(before) and len(expansion.pieces.get(piece, ())) > 1
    )
    assert torch.allclose(rows[new], before[list(expansion.pieces[new])].mean(0), atol=1e-6)
    assert torch.equal(rows[: expansion.base_size], before[: expansion.base_size])


def test_pieces_that_fit_into_the_padding_rows_mean_their_parts_too(store: Store, base: str) -> None:
    """A model has more rows than its tokenizer has ids; the first new pieces take those rows."""
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    grown = prepare_model(config, Places(base, folder(store, "enar"))).model.get_input_embeddings().weight
    old = (
        prepare_model(train_config(store, model=ModelConfig(path=base)), Places(base, base))
        .model.get_input_embeddings()
        .weight
    )
    expansion = load_expansion(tokenizer(store, "enar"))
    inside = [piece for piece in expansion.pieces if expansion.base_size <= piece < len(old)]
    assert inside
    for piece in inside:
        assert torch.allclose(grown[piece], old[list(expansion.pieces[piece])].mean(0), atol=1e-6)


def test_a_model_that_grew_says_how_its_rows_began(store: Store, base: str) -> None:
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    places = Places(base, folder(store, "enar"))
    manifest = prepare_model(config, places).new_rows
    expansion = load_expansion(tokenizer(store, "enar"))
    assert manifest is not None
    assert (manifest.method, manifest.rows_before, manifest.rows_after) == (InitMethod.mean, 512, expansion.size)
    assert (manifest.tokenizer_hash, manifest.base_tokenizer_hash) == (expansion.hash, expansion.base_hash)
    assert tuple(manifest.pieces) == expansion.new_ids
    assert prepare_model(train_config(store, model=ModelConfig(path=base)), Places(base, base)).new_rows is None


def test_a_model_from_random_weights_takes_over_no_rows_of_the_folder_it_is_made_in(
    store: Store, tiny_store: Store, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty path is the current folder, which may be that of a model whose vocabulary grew."""
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    manifest = prepare_model(config, Places(base, folder(store, "enar"))).new_rows
    assert manifest is not None
    write_new_rows(tmp_path / "here", [manifest])
    monkeypatch.chdir(tmp_path / "here")
    train_alone(tiny_store, train_config(tiny_store, loop={"num_steps": 1}), tmp_path / "run")
    assert (tmp_path / "run" / "model" / "config.json").exists()
    assert not (tmp_path / "run" / "model" / "new_rows.json").exists()


def test_a_model_is_prepared_again_by_its_manifest(store: Store, base: str) -> None:
    """Not by the config: what was prepared once is prepared the same, or not at all."""
    places = Places(base, folder(store, "enar"))
    random = RowInitConfig(method=InitMethod.random, seed=3)
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1", new_rows=random))
    first = prepare_model(config, places)
    other = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    again = prepare_model(other, places, first.new_rows)
    assert again.new_rows is first.new_rows
    states = [prepared.model.state_dict() for prepared in (first, again)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_rows_that_an_adapter_should_have_left_alone_stop_the_merge(store: Store, base: str) -> None:
    lora = TuningConfig(method=Method.lora, lora=LoraConfig(rank=2))
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"), tuning=lora)
    adapted = prepare_model(config, Places(base, folder(store, "enar")))
    assert settle_rows(adapted) == [adapted.new_rows]
    with torch.no_grad():
        adapted.model.get_input_embeddings().weight[410] += 1
    with pytest.raises(DataError, match="new rows of the input matrix as trained have sha256"):
        settle_rows(adapted)


def test_full_tuning_moves_its_rows_freely(store: Store, base: str) -> None:
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/enar@v1"))
    adapted = prepare_model(config, Places(base, folder(store, "enar")))
    with torch.no_grad():
        adapted.model.get_input_embeddings().weight[410] += 1
    assert settle_rows(adapted) == [adapted.new_rows]


def test_a_donor_is_found_among_the_parents(store: Store) -> None:
    rows = RowInitConfig(method=InitMethod.donor, donor="model/donor@v1")
    config = train_config(store, model=ModelConfig(path="org/model", tokenizer="tokenizer/enar@v1", new_rows=rows))
    assert Ref.parse("model/donor@v1") in parents_of(config)
    assert open_places(config, (tokenizer(store, "enar"),)) == Places(
        "org/model", folder(store, "enar"), "model/donor@v1"
    )


@pytest.mark.parametrize(
    ("rows", "name", "kind", "said"),
    [
        (
            RowInitConfig(method=InitMethod.random),
            "en",
            ConfigError,
            r"model\.new_rows\.method=random has no effect: .*no piece",
        ),
        (
            RowInitConfig(method=InitMethod.similarity),
            "enar",
            DataError,
            r"similarity, but .* holds no neighbours\.json",
        ),
        (
            RowInitConfig(method=InitMethod.donor, donor="/no/donor"),
            "enar",
            DataError,
            "tokenizer /no/donor holds no tokenizer",
        ),
    ],
)
def test_a_way_to_begin_rows_that_cannot_be_is_refused_before_a_worker_starts(
    rows: RowInitConfig, name: str, kind: type[Exception], said: str, store: Store, base: str
) -> None:
    config = train_config(store, model=ModelConfig(path=base, tokenizer=f"tokenizer/{name}@v1", new_rows=rows))
    with pytest.raises(kind, match=said):
        check_vocabulary(config, fake_tokens(store, name), (tokenizer(store, name),))


def test_an_expansion_of_another_base_is_refused(store: Store, base: str, tmp_path: Path) -> None:
    copytree(base, tmp_path / "other")
    spec = json.loads((tmp_path / "other" / "tokenizer.json").read_bytes())
    spec["version"] = "changed"
    (tmp_path / "other" / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(DataError, match=r"expands a tokenizer of 400 pieces, not the one of the model with 512 rows"):
        expansion_for(Places(str(tmp_path / "other"), folder(store, "enar")), 512, "tokens/t@v1")


def test_a_tokenizer_that_expands_nothing_cannot_grow_a_model(store: Store, base: str) -> None:
    with pytest.raises(
        DataError,
        match="the tokenizer of tokens/t@v1 is neither that of the model with 512 embedding rows nor an expansion",
    ):
        expansion_for(Places(folder(store, "enar"), base), 512, "tokens/t@v1")


def test_the_models_own_tokenizer_needs_no_expansion(store: Store, base: str) -> None:
    assert expansion_for(Places(base, folder(store, "en")), 512, "tokens/t@v1") is None
    assert expansion_for(Places(base, base), 512, "tokens/t@v1") is None


def test_an_expansion_that_fits_into_the_padding_rows_still_gives_them_their_pieces(store: Store, base: str) -> None:
    """400 ids have 512 rows; 460 ids have no more, and the rows of the new ones were padding."""
    few = TokenizerConfig(
        name="few",
        base="tokenizer/en@v1",
        corpus="corpus/tiny@v1",
        sources=("ar_text",),
        num_pieces=60,
        storage=StorageConfig(root=store.root.root),
    )
    run_stage(TOKENIZER, few, no_run, lambda _: None)
    config = train_config(store, model=ModelConfig(path=base, tokenizer="tokenizer/few@v1"))
    grown = prepare_model(config, Places(base, folder(store, "few"))).model.get_input_embeddings().weight
    old = (
        prepare_model(train_config(store, model=ModelConfig(path=base)), Places(base, base))
        .model.get_input_embeddings()
        .weight
    )
    expansion = load_expansion(tokenizer(store, "few"))
    assert len(grown) == len(old) == expansion.size == 512
    for piece, parts in expansion.pieces.items():
        assert torch.allclose(grown[piece], old[list(parts)].mean(0), atol=1e-6)


def test_a_hub_ids_tokenizer_is_known_by_its_file(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: folder(store, "en"))
    assert tokenizer_hash("org/model") == load_expansion(tokenizer(store, "en")).hash


def fake_tokens(store: Store, name: str) -> Any:
    facts = {"tokenizer_hash": tokenizer(store, name).facts["hash"], "vocabulary_size": 400}
    return SimpleNamespace(ref="tokens/t@v1", facts=facts)


def test_tokens_of_the_models_own_tokenizer_are_taken(store: Store, base: str) -> None:
    check_vocabulary(train_config(store, model=ModelConfig(path=base)), fake_tokens(store, "en"), ())


def with_rows(base: str, folder: Path, num_rows: int) -> str:
    """Copy a model folder that says it has another number of rows."""
    copytree(base, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": num_rows}))
    return str(folder)


def test_an_id_that_the_model_has_no_row_for_is_refused(store: Store, base: str, tmp_path: Path) -> None:
    short, tokens = with_rows(base, tmp_path / "short", 398), fake_tokens(store, "en")
    config = train_config(store, model=ModelConfig(path=short))
    with pytest.raises(
        DataError, match=r"tokens/t@v1 may hold the id 399 \('.*'\) and the model has 398 embedding rows"
    ):
        check_vocabulary(config, tokens, ())
    tokens.facts["highest_id"] = 398
    with pytest.raises(DataError, match=r"may hold the id 398"):
        check_vocabulary(config, tokens, ())
    tokens.facts["highest_id"] = 397
    check_vocabulary(config, tokens, ())


def test_ids_of_the_base_without_a_row_get_one_when_the_vocabulary_grows(
    store: Store, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = with_rows(base, tmp_path / "short", 398)
    config = train_config(store, model=ModelConfig(path=short, tokenizer="tokenizer/enar@v1"))
    check_vocabulary(config, fake_tokens(store, "enar"), (tokenizer(store, "enar"),))
    assert "the ids 398 to 399 of the base's tokenizer have no row in" in capsys.readouterr().out


def test_tokens_of_another_tokenizer_are_refused(store: Store, base: str) -> None:
    with pytest.raises(
        DataError, match=rf"tokens/t@v1 was encoded with another tokenizer than {base} \(400 and 400 pieces\)"
    ):
        check_vocabulary(train_config(store, model=ModelConfig(path=base)), fake_tokens(store, "enar"), ())


def test_the_model_carries_the_tokenizers_very_files(store: Store, base: str) -> None:
    for name in ("tokenizer.json", "chat_template.jinja", "expansion.json", "tokenizer_config.json"):
        assert (Path(base) / name).read_bytes() == (Path(folder(store, "en")) / name).read_bytes()


def test_generation_stops_at_the_end_of_a_turn_and_of_a_text(store: Store, base: str) -> None:
    defaults = json.loads((Path(base) / "generation_config.json").read_bytes())
    own = load_tokenizer(tokenizer(store, "en"))
    assert defaults["eos_token_id"] == sorted({own.eos_token_id, end_of_turn_id(own)})
    assert len(defaults["eos_token_id"]) == 2
    assert defaults["do_sample"] is False


def test_a_bases_own_generation_settings_are_kept_with_the_end_of_a_turn(
    store: Store, base: str, tmp_path: Path
) -> None:
    own = load_tokenizer(tokenizer(store, "en"))
    theirs = {"eos_token_id": [2, 7, 9], "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    copytree(base, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps(theirs))
    (tmp_path / "model").mkdir()
    copy_tokenizer(folder(store, "en"), tmp_path / "model", str(tmp_path / "base"))
    found = json.loads((tmp_path / "model" / "generation_config.json").read_bytes())
    assert found.pop("eos_token_id") == sorted({2, 7, 9, own.eos_token_id, end_of_turn_id(own)})
    ids = {"bos_token_id": own.bos_token_id, "pad_token_id": own.pad_token_id}
    assert found == ids | {"do_sample": True, "temperature": 0.6, "top_p": 0.9}


def test_settings_that_only_repeat_a_config_are_nobodys_choice(store: Store, base: str, tmp_path: Path) -> None:
    own = load_tokenizer(tokenizer(store, "en"))
    copytree(base, tmp_path / "base")
    (tmp_path / "base" / "generation_config.json").write_text('{"_from_model_config": true, "eos_token_id": 1}')
    (tmp_path / "model").mkdir()
    copy_tokenizer(folder(store, "en"), tmp_path / "model", str(tmp_path / "base"))
    found = json.loads((tmp_path / "model" / "generation_config.json").read_bytes())
    assert (found["do_sample"], found["max_new_tokens"]) == (False, 256)
    assert end_of_turn_id(own) in found["eos_token_id"]
