"""Laws of the model room: growing and adapting change nothing until something is learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from bilingual import ARABIC, ENGLISH
from safetensors.torch import load_file
from tiny import SHAPE, encode, largest_difference, make_model, train_alone, train_config, weights
from torch.nn import functional

from lisan.cluster.config import Precision
from lisan.core.artifact import Kind, Ref, Store
from lisan.core.errors import DataError
from lisan.core.stage import StorageConfig, run_stage
from lisan.data.rows import RowReader
from lisan.model.adapters.lora import attach_adapter, iter_merged, read_adapter
from lisan.model.config import InitMethod, LoraConfig, ModelConfig, RowInitConfig
from lisan.model.embeddings.donor import project_donor
from lisan.model.embeddings.new_rows import NewRows, check_new_rows, init_new_rows, read_new_rows, replay_new_rows
from lisan.model.embeddings.resize import gather, is_tied, read_matrices
from lisan.model.load import load_model
from lisan.model.score import Scorer, collate
from lisan.records.kinds import RecordKind
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.expand_tokenizer import TOKENIZER
from lisan.tokenizer.expand.neighbours import write_neighbours
from lisan.train.options import Method, TuningConfig

IDS = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(0))
PIECES = {100: (3, 4), 101: (5,), 105: (1, 2, 3)}


def tiny_model(tie: bool = True, init_std: float = 0.3, seed: int = 0) -> Any:
    shape = replace(SHAPE, tie_embeddings=tie)
    return make_model(ModelConfig(shape=shape, tokenizer="t", init_std=init_std), 100, {"pad_token_id": 7}, seed).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


def grow(model: Any, method: InitMethod = InitMethod.mean) -> NewRows:
    """Grow a tiny model to 128 rows by a method, with all that the method needs."""
    recipe = NewRows(
        method=method, tokenizer_hash="t", base_tokenizer_hash="b", rows_after=128, num_old=100, pieces=PIECES
    )
    if method is InitMethod.similarity:
        recipe = replace(recipe, neighbours={100: ((7, 0.5), (9, 0.5)), 105: ((11, 1.0),)})
    if method is InitMethod.donor:
        matches = {**{index: index for index in range(60)}, 100: 61, 105: 62}
        recipe = project_donor(model, tiny_model(seed=1), matches, recipe)
    return init_new_rows(model, recipe)


@torch.no_grad()
def hidden(model: Any) -> torch.Tensor:
    found: torch.Tensor = model.get_decoder()(input_ids=IDS).last_hidden_state
    return found


def english_loss(logits_BTV: torch.Tensor) -> torch.Tensor:
    """Return the NLL of every token of IDS but the first of each row, [B, T - 1]."""
    return -logits_BTV.log_softmax(-1)[:, :-1].gather(2, IDS[:, 1:, None])[..., 0]


EACH = [
    pytest.param(method, tie, id=f"{method}-{'tied' if tie else 'untied'}")
    for method in InitMethod
    for tie in (True, False)
]


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_a_resized_model_gives_identical_logits_on_text_without_new_pieces(method: InitMethod, tie: bool) -> None:
    """To the last bit, over the ids of the base. A product over 128 instead of 100 columns may block its sums otherwise."""
    model = tiny_model(tie)
    before = hidden(model), logits(model)
    grow(model, method)
    assert torch.equal(hidden(model), before[0])
    old_rows = model.get_output_embeddings().weight.detach()[:100]
    assert torch.equal(functional.linear(hidden(model), old_rows), before[1])
    assert logits(model).shape[-1] == 128
    assert torch.allclose(logits(model)[..., :100], before[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_growing_leaves_the_loss_over_the_bases_ids_and_adds_what_new_pieces_claim(
    method: InitMethod, tie: bool
) -> None:
    """Over the base's ids the loss is the same to the last bit. Over all ids a token's loss grows by log(1 + m), m being the
    mass of the new rows relative to the old: no finite row claims nothing, so that this much is lost until training takes
    it back."""
    model = tiny_model(tie)
    before = english_loss(logits(model))
    grow(model, method)
    old_rows = model.get_output_embeddings().weight.detach()[:100]
    assert torch.equal(english_loss(functional.linear(hidden(model), old_rows)), before)
    full = logits(model).double()
    mass = (full[..., 100:].logsumexp(-1) - full[..., :100].logsumexp(-1)).exp()[:, :-1]
    assert torch.allclose(english_loss(full), before.double() + mass.log1p(), rtol=0, atol=1e-5)
    assert (mass > 0).all()


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_a_grown_model_is_saved_and_read_back_the_same(method: InitMethod, tie: bool, tmp_path: Path) -> None:
    model = tiny_model(tie)
    grow(model, method)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).eval()
    assert again.get_input_embeddings().weight.shape[0] == 128
    assert is_tied(again) is tie
    assert torch.equal(logits(again), logits(model))


ADAPTERS = {
    "lora": LoraConfig(rank=4, alpha=16),
    "rslora": LoraConfig(rank=4, alpha=16, use_rslora=True),
    "dora": LoraConfig(rank=4, alpha=16, use_dora=True, targets=("all",)),
}


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_fresh_adapter_changes_nothing(name: str) -> None:
    model = tiny_model()
    before = logits(model)
    attach_adapter(model, ADAPTERS[name])
    assert torch.equal(logits(model), before)


def test_only_the_adapter_is_trained() -> None:
    wrapped = attach_adapter(tiny_model(), LoraConfig(rank=4))
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("tie", [True, False])
def test_the_merged_model_computes_what_the_adapted_one_did(tie: bool, adapter: str) -> None:
    model = tiny_model(tie)
    before = logits(model)
    wrapped = attach_adapter(model, ADAPTERS[adapter])
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
            if "magnitude" in name:
                parameter.mul_(1 + 0.2 * torch.rand_like(parameter))
    adapted = logits(model)
    merged = tiny_model(tie)
    state = {name: make(gather) for name, make in iter_merged(model)}
    assert state.keys() == dict(merged.named_parameters()).keys()
    merged.load_state_dict(state, strict=False)  # of tied matrices one is named
    assert not torch.allclose(adapted, before, atol=0.1)
    assert torch.allclose(logits(merged), adapted, atol=1e-4)


@pytest.fixture(scope="module")
def expanded(tiny_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store with a tokenizer of English only, its Arabic expansion, and documents in the pieces of both."""
    from shutil import copytree

    root = tmp_path_factory.mktemp("expanded")
    copytree(Path(tiny_store.root.root) / "corpus", root / "corpus")
    common: dict[str, Any] = {"corpus": "corpus/tiny@v1", "storage": StorageConfig(root=str(root))}
    from tiny import no_run, silent

    for config in (
        TokenizerConfig(name="en", sources=("en_text",), num_pieces=400, **common),
        TokenizerConfig(
            name="enar",
            base="tokenizer/en@v1",
            sources=("ar_text",),
            protected_sources=("en_text",),
            num_pieces=150,
            **common,
        ),
        TokenizerConfig(name="more", base="tokenizer/enar@v1", sources=("ar_text",), num_pieces=40, **common),
    ):
        run_stage(TOKENIZER, config, no_run, silent)
    store = Store(str(root))
    encode(store, RecordKind.documents, "tokenizer/en@v1", name="en", sources=("en_text",))
    encode(store, RecordKind.documents, "tokenizer/enar@v1", name="enar")
    encode(store, RecordKind.documents, "tokenizer/more@v1", name="more")
    encode(store, RecordKind.conversations, "tokenizer/enar@v1", name="chats")
    return store


@pytest.mark.parametrize("tie", [True, False])
def test_embeddings_survive_expansion_training_merging_saving_and_reloading(
    tie: bool, expanded: Store, tmp_path: Path
) -> None:
    """The whole way of a model: from random weights, expanded and pretrained on, tuned with LoRA and merged."""
    shape = replace(SHAPE, tie_embeddings=tie)
    start = ModelConfig(shape=shape, tokenizer="tokenizer/en@v1", init_std=0.2)
    train_alone(expanded, train_config(expanded, "en", model=start, loop={"num_steps": 2}), tmp_path / "base")
    onward = ModelConfig(path=str(tmp_path / "base" / "model"), tokenizer="tokenizer/enar@v1")
    train_alone(expanded, train_config(expanded, "enar", model=onward, loop={"num_steps": 2}), tmp_path / "cpt")
    tuned = train_config(
        expanded,
        "chats",
        model=ModelConfig(path=str(tmp_path / "cpt" / "model")),
        loop={"num_steps": 2},
        tuning=TuningConfig(method=Method.lora, lora=LoraConfig(rank=4)),
    )
    train_alone(expanded, tuned, tmp_path / "sft")
    base, cpt, sft = (weights(tmp_path / name) for name in ("base", "cpt", "sft"))
    size = expanded.open(Ref(Kind.tokenizer, "enar", "v1")).facts["size"]
    assert ("lm_head.weight" in sft) is not tie
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & set(sft):
        assert cpt[name].shape[0] == size > base[name].shape[0]
        assert torch.equal(sft[name], cpt[name])  # LoRA leaves the vocabulary alone
        assert not torch.equal(cpt[name][: len(base[name])], base[name])  # pretraining does not
    projections = [name for name in cpt if "q_proj" in name]
    assert largest_difference({name: cpt[name] for name in projections}, {name: sft[name] for name in projections}) > 0
    model = load_model(str(tmp_path / "sft" / "model"))
    assert (model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()) == tie
    assert_adapter_is_what_was_merged(tmp_path, expanded)


def assert_adapter_is_what_was_merged(folder: Path, store: Store) -> None:
    """Hold the finished model against PEFT's own reading of base and adapter."""
    from peft import PeftModel

    rows = RowReader(store.open(Ref.parse("tokens/chats@v1"))).read([0, 1])
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    adapted = PeftModel.from_pretrained(
        load_model(str(folder / "cpt" / "model")), str(folder / "sft" / "model" / "adapter")
    )
    with torch.no_grad():
        expected = Scorer(adapted.base_model.model).eval()(batch)
        found = Scorer(load_model(str(folder / "sft" / "model"))).eval()(batch)
    assert torch.allclose(found, expected, atol=1e-4)


@pytest.fixture(scope="module")
def bases(expanded: Store, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, str]:
    """Folders of two models of English, one tied and one not, kept in bfloat16 as users keep them."""
    folder = tmp_path_factory.mktemp("bases")
    for tie in (True, False):
        start = ModelConfig(shape=replace(SHAPE, tie_embeddings=tie), tokenizer="tokenizer/en@v1", init_std=0.2)
        config = train_config(expanded, "en", model=start, loop={"num_steps": 1}, save_precision=Precision.bfloat16)
        train_alone(expanded, config, folder / str(tie))
    return {tie: str(folder / str(tie) / "model") for tie in (True, False)}


@pytest.mark.parametrize(("method", "tie"), EACH)
def test_an_adapter_over_new_rows_finds_the_same_rows_again(
    method: InitMethod, tie: bool, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    """LoRA straight over a growing vocabulary: base + manifest + adapter = the merged model, and no other base will do."""
    tuned = train_config(
        expanded,
        "enar",
        model=ModelConfig(
            path=bases[tie], tokenizer="tokenizer/enar@v1", new_rows=init_config(method, expanded, tmp_path)
        ),
        loop={"num_steps": 2},
        tuning=TuningConfig(method=Method.lora, lora=LoraConfig(rank=4)),
    )
    train_alone(expanded, tuned, tmp_path / "cpt")
    merged, adapter = tmp_path / "cpt" / "model", tmp_path / "cpt" / "model" / "adapter"
    [manifest] = read_new_rows(adapter)
    assert read_new_rows(merged) == (manifest,)
    assert manifest.method is method
    assert all("lora_" in name for name in load_file(adapter / "adapter_model.safetensors"))
    model = load_model(str(merged))
    check_new_rows(model, manifest)
    replayed = load_model(bases[tie])
    replay_new_rows(replayed, manifest)
    for name, matrix in read_matrices(model).items():
        assert torch.equal(matrix, read_matrices(replayed)[name])
    adapted = read_adapter(load_model(bases[tie]), adapter)
    rows = RowReader(expanded.open(Ref.parse("tokens/enar@v1"))).read([0, 1])
    batch = collate(rows.input_ids, rows.labels, rows.doc_lens)
    with torch.no_grad():
        found = Scorer(adapted.base_model.model).eval()(batch)
        assert torch.allclose(found, Scorer(model).eval()(batch), atol=1e-4)
    with pytest.raises(DataError, match="load the base that they were made over"):
        read_adapter(load_model(str(merged)), adapter)


def init_config(method: InitMethod, store: Store, folder: Path) -> RowInitConfig:
    """Return a config for a method, and make what it needs: neighbours beside the tokenizer, a donor with its own."""
    if method is InitMethod.similarity:
        place = store.open(Ref.parse("tokenizer/enar@v1")).location.local_folder()
        write_neighbours(place, [" ".join((*ENGLISH, *ARABIC))] * 3, 8)
    if method is not InitMethod.donor:
        return RowInitConfig(method=method)
    start = ModelConfig(shape=SHAPE, tokenizer="tokenizer/enar@v1", init_std=0.2)
    train_alone(store, train_config(store, "enar", model=start, loop={"num_steps": 1}), folder / "donor")
    return RowInitConfig(method=method, donor=str(folder / "donor" / "model"))


@pytest.mark.parametrize("tie", [True, False])
def test_a_second_expansion_carries_the_chain(
    tie: bool, expanded: Store, bases: dict[bool, str], tmp_path: Path
) -> None:
    """en -> enar -> more: the model of the second growth says how both began, and each replays over its own base."""
    places = [bases[tie]]
    for number, (tokens, tokenizer) in enumerate((("enar", "enar"), ("more", "more"), ("more", None))):
        model = ModelConfig(path=places[-1], tokenizer=f"tokenizer/{tokenizer}@v1" if tokenizer else None)
        config = train_config(expanded, tokens, model=model, loop={"num_steps": 1}, save_precision=Precision.bfloat16)
        train_alone(expanded, config, tmp_path / str(number))
        places.append(str(tmp_path / str(number) / "model"))
    chains = [read_new_rows(place) for place in places]
    assert [len(chain) for chain in chains] == [0, 1, 2, 2]
    assert chains[3] == chains[2]
    assert chains[2][:1] == chains[1]
    hashes = [expanded.open(Ref.parse(f"tokenizer/{name}@v1")).facts["hash"] for name in ("en", "enar", "more")]
    links = [(manifest.base_tokenizer_hash, manifest.tokenizer_hash) for manifest in chains[3]]
    assert links == [(hashes[0], hashes[1]), (hashes[1], hashes[2])]
    for manifest, place in zip(chains[3], places[:2], strict=True):
        replay_new_rows(load_model(place), manifest)
    with pytest.raises(DataError, match="load the base that they were made over"):
        replay_new_rows(load_model(places[0]), chains[3][1])
