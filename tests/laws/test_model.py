"""Laws of the model room: growing and adapting change nothing until something is learned."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import SHAPE, encode, largest_difference, train_alone, train_config, weights

from lisan.core.artifact import Kind, Ref, Store
from lisan.core.stage import StorageConfig, run_stage
from lisan.corpus.records import RecordKind
from lisan.model.adapter import LoraConfig, attach_adapter, merge_adapter
from lisan.model.embeddings import resize_embeddings
from lisan.model.load import ModelConfig, load_model, make_model
from lisan.model.score import Scorer, collate
from lisan.tokens.expand import TOKENIZER, TokenizerConfig
from lisan.tokens.rows import RowReader
from lisan.train.job import Method, TuningConfig

IDS = torch.randint(0, 100, (3, 20), generator=torch.Generator().manual_seed(0))
PIECES = {100: (3, 4), 101: (5,), 105: (1, 2, 3)}


def tiny_model(tie: bool = True, init_std: float = 0.3) -> Any:
    shape = replace(SHAPE, tie_embeddings=tie)
    return make_model(
        ModelConfig(shape=shape, tokenizer="t", init_std=init_std), 100, {"pad_token_id": 7}, seed=0
    ).eval()


@torch.no_grad()
def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=ids).logits
    return found


@pytest.mark.parametrize("tie", [True, False])
def test_a_resized_model_gives_identical_logits_on_text_without_new_pieces(tie: bool) -> None:
    model = tiny_model(tie)
    before = logits(model)
    resize_embeddings(model, 128, PIECES)
    after = logits(model)
    assert after.shape[-1] == 128
    # One matrix product over 128 instead of 100 rows may block its sums differently.
    assert torch.allclose(before, after[..., :100], rtol=0, atol=1e-5)


@pytest.mark.parametrize("tie", [True, False])
def test_growing_moves_no_bit_of_an_old_row_and_means_the_pieces_of_a_new_one(tie: bool) -> None:
    model = tiny_model(tie)
    old = [layer.weight.detach().clone() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    resize_embeddings(model, 128, PIECES)
    grown = [layer.weight.detach() for layer in (model.get_input_embeddings(), model.get_output_embeddings())]
    for before, after in zip(old, grown, strict=True):
        assert torch.equal(after[:100], before)
        for new_id, pieces in PIECES.items():
            assert torch.allclose(after[new_id], before[list(pieces)].mean(0))
        assert torch.allclose(after[127], before.mean(0))
    assert (grown[0].data_ptr() == grown[1].data_ptr()) == tie


@pytest.mark.parametrize("tie", [True, False])
def test_a_grown_model_is_saved_and_read_back_the_same(tie: bool, tmp_path: Path) -> None:
    model = tiny_model(tie)
    resize_embeddings(model, 128, PIECES)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path)).eval()
    assert again.get_input_embeddings().weight.shape[0] == 128
    assert torch.equal(logits(again), logits(model))


def test_a_fresh_adapter_changes_nothing() -> None:
    model = tiny_model()
    before = logits(model)
    attach_adapter(model, LoraConfig(rank=4))
    assert torch.equal(logits(model), before)


def test_only_the_adapter_is_trained() -> None:
    wrapped = attach_adapter(tiny_model(), LoraConfig(rank=4))
    trained = [name for name, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name for name in trained)


@pytest.mark.parametrize("tie", [True, False])
def test_the_merged_model_computes_what_the_adapted_one_did(tie: bool) -> None:
    model = tiny_model(tie)
    before = logits(model)
    wrapped = attach_adapter(model, LoraConfig(rank=4, alpha=16))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    adapted = logits(model)
    merged = merge_adapter(wrapped)
    assert not torch.allclose(adapted, before, atol=0.1)
    assert torch.allclose(logits(merged), adapted, atol=1e-4)
    assert not any("lora" in name for name, _ in merged.named_parameters())


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
    ):
        run_stage(TOKENIZER, config, no_run, silent)
    store = Store(str(root))
    encode(store, RecordKind.documents, "tokenizer/en@v1", name="en", sources=("en_text",))
    encode(store, RecordKind.documents, "tokenizer/enar@v1", name="enar")
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
