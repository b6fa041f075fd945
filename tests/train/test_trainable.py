"""What a tuning trains, and the options that would do nothing."""

from pathlib import Path
from typing import Any

import pytest
from tiny import SHAPE, make_model

from lisan.core.errors import ConfigError
from lisan.model.config import LoraConfig, ModelConfig
from lisan.model.embeddings.new_rows import NewRows, init_new_rows, write_new_rows
from lisan.train.options import Method, Quantisation, Rows, TuningConfig
from lisan.train.setup.trainable import apply_tuning, check_adapters, check_new_rows_exist, choose_rows


def model() -> Any:
    return make_model(ModelConfig(shape=SHAPE, tokenizer="t"), 50, {}, seed=0)


def trained(tuning: TuningConfig, manifest: NewRows | None = None) -> set[str]:
    plain = model()
    apply_tuning(tuning, plain, (), choose_rows(tuning, plain, manifest, ""), seed=0)
    return {name for name, parameter in plain.named_parameters() if parameter.requires_grad}


EMBEDDINGS = "model.embed_tokens.weight"
LORA = LoraConfig(rank=2)


def test_each_method_trains_what_it_says() -> None:
    everything = {name for name, _ in model().named_parameters()}
    assert trained(TuningConfig()) == everything
    assert trained(TuningConfig(rows=Rows.none)) == everything - {EMBEDDINGS}
    assert trained(TuningConfig(method=Method.embeddings)) == {EMBEDDINGS}
    adapters = trained(TuningConfig(method=Method.lora, lora=LORA))
    assert all("lora_" in name for name in adapters)
    assert trained(TuningConfig(method=Method.lora, rows=Rows.all, lora=LORA)) == adapters | {EMBEDDINGS}


def manifest(pieces: dict[int, tuple[int, ...]]) -> NewRows:
    return NewRows(
        method="mean",  # type: ignore[arg-type]
        tokenizer_hash="t",
        base_tokenizer_hash="b",
        rows_after=64,
        num_old=50,
        pieces=pieces,
    )


def test_new_rows_are_those_of_this_run_or_else_of_the_models_last_expansion(tmp_path: Path) -> None:
    tuning = TuningConfig(method=Method.embeddings, rows=Rows.new)
    chain = [init_new_rows(model(), manifest(pieces)) for pieces in ({50: (1,)}, {55: (3,), 52: (1, 2)})]
    write_new_rows(tmp_path, chain)
    assert choose_rows(tuning, model(), chain[0], str(tmp_path)) == (50,)
    assert choose_rows(tuning, model(), None, str(tmp_path)) == (52, 55)
    check_new_rows_exist(tuning, False, str(tmp_path))


def test_new_rows_where_nothing_is_new_are_refused(tmp_path: Path) -> None:
    tuning = TuningConfig(rows=Rows.new)
    with pytest.raises(ConfigError, match=r"tuning\.rows=new has no effect: no piece is new, and .* has no new_rows"):
        check_new_rows_exist(tuning, False, str(tmp_path))
    check_new_rows_exist(tuning, True, str(tmp_path))
    check_new_rows_exist(TuningConfig(), False, str(tmp_path))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"method": Method.embeddings, "rows": Rows.none}, r"tuning\.rows=none with method=embeddings trains nothing"),
        ({"lora": LoraConfig(rank=4)}, r"tuning\.lora has no effect with tuning\.method=full"),
        ({"method": Method.embeddings, "lora": LoraConfig(rank=4)}, "has no effect with tuning.method=embeddings"),
        (
            {"quantise_base": Quantisation.nf4},
            r"tuning\.quantise_base=nf4 freezes the blocks, which takes method=lora, not full",
        ),
    ],
)
def test_an_option_without_effect_is_refused(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TuningConfig(**values)


def test_what_a_worker_would_refuse_is_refused_before_one_starts(
    base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_adapters(TuningConfig(method=Method.lora), base_model)
    check_adapters(TuningConfig(), base_model)
    with pytest.raises(ConfigError, match=r"names query, which fit no linear layer in the blocks of LlamaForCausalLM"):
        check_adapters(TuningConfig(method=Method.lora, lora=LoraConfig(targets=("query",))), base_model)
    monkeypatch.setattr("lisan.model.adapters.nf4.find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs bitsandbytes, .* pip install -e '\.\[qlora\]'"):
        check_adapters(TuningConfig(method=Method.lora, quantise_base=Quantisation.nf4), base_model)
