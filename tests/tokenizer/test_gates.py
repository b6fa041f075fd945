from typing import Any

import pytest
from bilingual import ALL_BASES, ARABIC, DIVERSE, ENGLISH, expand
from transformers import PreTrainedTokenizerFast

from lisan.core.errors import ConfigError, DataError
from lisan.tokenizer.expand.config import Gates
from lisan.tokenizer.expand.gates import HeldOut, check_gates, compare, summarise, try_round_trips
from lisan.tokenizer.expand.probes import CODE, ROUND_TRIP
from lisan.tokenizer.script import script
from lisan.tokenizer.tokenizer_json import Definition, open_definition

TARGET = script(("arabic",))


def opened(*added: str, name: str = "gpt") -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=open_definition(ALL_BASES[name]()))
    tokenizer.add_tokens(list(added))
    return tokenizer


def wrap(definition: Definition) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=open_definition(definition))


def both(name: str) -> tuple[Any, Any]:
    return opened(name=name), wrap(expand(ALL_BASES[name](), TARGET)[1])


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


def test_a_protected_source_in_the_targets_script_is_measured_and_said() -> None:
    shared = f"{ENGLISH[0]}\n{ARABIC[0]}\nكوكب\n{ENGLISH[1]}"
    facts = compare(opened(), opened("المغرب"), held_out([shared]), TARGET)
    assert facts["protected_lines"] == {"en": {"lines": 4, "with_target_script": 2, "changed": 1}}
    assert summarise(facts).endswith(
        "1 of 4 lines of en changed, which shares the target's script; protected text without that script unchanged"
    )
    alone = compare(opened(), opened("المغرب"), held_out(ENGLISH), TARGET)
    assert summarise(alone).endswith("protected text unchanged")


def test_too_small_a_gain_breaks_its_gate() -> None:
    facts = compare(opened(), opened("المغرب"), held_out(ENGLISH), TARGET)
    with pytest.raises(DataError, match=r"gates.min_factor is 9 but the target takes only 1\.\d\d times fewer"):
        check_gates(Gates(min_factor=9), facts)


def test_nothing_protected_leaves_the_ratio_out() -> None:
    facts = compare(opened(), opened("المغرب"), held_out([])[:1], TARGET)
    assert "changed_ratio" not in facts
    check_gates(Gates(), facts)


def test_source_code_is_always_measured() -> None:
    facts = compare(opened(), opened("return"), held_out(ENGLISH[:1])[:1], TARGET)
    assert 0.005 < facts["changed_code_ratio"] < 0.05
    with pytest.raises(
        DataError, match=r"gates.max_changed_code_ratio is 1e-05 but 0\.\d+ of the tokens of source code"
    ):
        check_gates(Gates(), facts)
    check_gates(Gates(max_changed_code_ratio=1), facts)


def test_code_sources_are_measured_beside_our_own() -> None:
    code = HeldOut("code", "perl", "code", ["my $zebra = 1;\n# العربية zebra\n"])
    facts = compare(opened(), opened("zebra"), [*held_out(ENGLISH), code], TARGET)
    assert 0 < facts["changed_code_ratio"] < 0.05
    assert "fertility_code_after" in facts


def test_lines_keep_their_ends_and_indents_when_they_are_compared() -> None:
    facts = compare(opened(), opened("\n    "), held_out(["a:\n    b\nالمغرب\nc"]), TARGET)
    assert facts["changed_ratio"] == 0.5


@pytest.mark.parametrize("name", sorted(ALL_BASES))
def test_every_probe_survives_the_expansion_of_every_base(name: str) -> None:
    facts = try_round_trips(*both(name), [*ROUND_TRIP, *CODE, *DIVERSE, *ARABIC])
    assert facts["lost_texts"] == []
    assert (facts["round_trips_unknown"] > 0) is (name == "t5")
    assert (facts["round_trips_changed_by_base"] > 0) is (name not in ("gpt", "llama", "llama2"))


def test_a_special_token_that_swallows_spaces_loses_text() -> None:
    greedy = ALL_BASES["gpt"]()
    greedy["added_tokens"][0] |= {"content": "<|endoftext|>", "lstrip": True}
    facts = try_round_trips(opened(), wrap(greedy), ["a <|endoftext|>", "b"])
    assert facts["lost_ratio"] == 0.5
    with pytest.raises(
        DataError, match=r"gates.max_lost_ratio is 0 but 0.5 of 2 texts .*, one of them 'a <\|endoftext\|>'"
    ):
        check_gates(Gates(), {**facts, "factor": 2.0})
    check_gates(Gates(max_lost_ratio=0.5), {**facts, "factor": 2.0})


def test_more_unknown_characters_than_in_the_base_are_a_loss() -> None:
    before, after = both("t5")
    assert try_round_trips(before, after, ARABIC[:2])["lost_ratio"] == 0
    assert try_round_trips(after, before, ARABIC[:2])["lost_ratio"] == 1


def test_known_text_between_unknown_characters_is_no_loss() -> None:
    facts = try_round_trips(*both("t5"), ["في漢في漢"])
    assert (facts["round_trips_unknown"], facts["lost_ratio"]) == (1, 0)


def test_a_text_that_the_base_normalises_may_come_back_normalised() -> None:
    facts = try_round_trips(*both("qwen"), ["cafe\u0301"])
    assert (facts["round_trips_changed_by_base"], facts["lost_ratio"]) == (1, 0)


def test_the_last_line_says_what_was_gained_and_kept() -> None:
    facts = compare(opened(), opened("المغرب"), held_out(ENGLISH), TARGET)
    line = summarise(facts)
    assert line.startswith(
        f"target: {facts['fertility_target_before']:.2f} -> {facts['fertility_target_after']:.2f} tokens"
    )
    assert line.endswith("protected text unchanged")
    assert summarise({**facts, "changed_ratio": 0.25}).endswith("0.25 of protected tokens changed")
    assert summarise({**facts, "changed_ratio": None}).endswith("nothing protected was measured")


def test_a_gate_can_be_opened() -> None:
    facts = compare(opened(), opened("the"), held_out(ENGLISH), TARGET)
    check_gates(Gates(max_changed_ratio=1, max_changed_code_ratio=1, min_factor=0), facts)


@pytest.mark.parametrize(
    ("key", "value"),
    [("max_changed_ratio", 2.0), ("max_changed_code_ratio", -1), ("max_lost_ratio", 2), ("min_factor", -0.5)],
)
def test_a_gate_out_of_range_is_one_sentence(key: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"gates.{key} must"):
        Gates(**{key: value})
