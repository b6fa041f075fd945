import pytest
from bilingual import ARABIC, BASES, ENGLISH
from transformers import PreTrainedTokenizerFast

from lisan.core.errors import ConfigError, DataError
from lisan.tokens import bpe
from lisan.tokens.gates import Gates, HeldOut, check_gates, compare
from lisan.tokens.merges import script

TARGET = script(("arabic",))


def opened(*added: str) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe.open_spec(BASES["gpt"]()))
    tokenizer.add_tokens(list(added))
    return tokenizer


def held_out(protected: list[str]) -> list[HeldOut]:
    return [HeldOut("target", "ar", "ar", ARABIC), HeldOut("protected", "en", "en", protected)]


def test_facts_name_group_and_moment() -> None:
    facts = compare(opened(), opened("المغرب"), held_out(ENGLISH), TARGET)
    assert facts["fertility_target_before"] > facts["fertility_target_after"] > 1
    assert facts["fertility_protected_before"] == facts["fertility_protected_after"]
    assert facts["factor"] > 1
    assert facts["changed_ratio"] == 0
    assert [row["source"] for row in facts["fertility_rows_after"]] == ["ar", "en"]


def test_a_changed_protected_line_breaks_its_gate() -> None:
    facts = compare(opened(), opened("the"), held_out(ENGLISH), TARGET)
    with pytest.raises(DataError, match=r"gates.max_changed_ratio is 1e-05 but 0\.\d+ of protected tokens changed; "):
        check_gates(Gates(), facts)


def test_arabic_lines_of_protected_text_may_change() -> None:
    facts = compare(opened(), opened("المغرب"), held_out([f"{ENGLISH[0]}\n{ARABIC[0]}"]), TARGET)
    assert facts["changed_ratio"] == 0
    assert facts["fertility_protected_after"] < facts["fertility_protected_before"]


def test_too_small_a_gain_breaks_its_gate() -> None:
    facts = compare(opened(), opened("المغرب"), held_out(ENGLISH), TARGET)
    with pytest.raises(DataError, match=r"gates.min_factor is 9 but the target takes only 1\.\d\d times fewer"):
        check_gates(Gates(min_factor=9), facts)


def test_nothing_protected_leaves_the_ratio_out() -> None:
    facts = compare(opened(), opened("المغرب"), held_out([])[:1], TARGET)
    assert "changed_ratio" not in facts
    check_gates(Gates(), facts)


@pytest.mark.parametrize(("key", "value"), [("max_changed_ratio", 2.0), ("min_factor", 0.5)])
def test_a_gate_out_of_range_is_one_sentence(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"gates.{key} must"):
        Gates(**{key: value})
