"""Gates that an expanded tokenizer must pass before it is written.

In: the base and the new tokenizer, held-out text by group (`target`, `protected`, `code`) and source. Out: the facts of the
manifest. Always: a broken gate is one sentence that names it.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from lisan.core.errors import DataError
from lisan.tokenizer.expand.config import Gates
from lisan.tokenizer.expand.probes import CODE, ROUND_TRIP
from lisan.tokenizer.fertility.measure import Comparison, FertilityCounts, changed_ratio, measure, pool
from lisan.tokenizer.script import SPACE, Script
from lisan.tokenizer.tokenizer_json import unknown_id


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Text of one source that was not learned on."""

    group: str
    source: str
    language: str
    texts: Sequence[str]


def measure_groups(tokenizer: Any, held_out: Sequence[HeldOut]) -> dict[str, list[FertilityCounts]]:
    """Return a row a source, by group."""
    rows: dict[str, list[FertilityCounts]] = {}
    for part in held_out:
        rows.setdefault(part.group, []).append(measure(tokenizer, part.texts, part.source, part.language))
    return rows


def describe(rows: Mapping[str, Sequence[FertilityCounts]], moment: str) -> dict[str, Any]:
    """Return pooled figures a group (`fertility_target_after`) and the rows themselves."""
    facts: dict[str, Any] = {f"fertility_rows_{moment}": [row.to_plain() for part in rows.values() for row in part]}
    for group, part in rows.items():
        row = pool(part, group)
        facts[f"fertility_{group}_{moment}"] = round(row.fertility, 4)
        facts[f"bytes_per_token_{group}_{moment}"] = round(row.bytes_per_token, 4)
        facts[f"single_byte_ratio_{group}_{moment}"] = round(row.single_byte_ratio, 4)
    return facts


def compare(before: Any, after: Any, held_out: Sequence[HeldOut], script: Script) -> dict[str, Any]:
    """Measure both tokenizers and return the facts of the gates, with their figures."""
    old, new = measure_groups(before, held_out), measure_groups(after, held_out)
    target = Comparison(pool(old["target"], "target"), pool(new["target"], "target"))
    texts = {group: [text for part in held_out if part.group == group for text in part.texts] for group in old}
    facts = {**describe(old, "before"), **describe(new, "after")}
    facts |= {"factor": round(target.factor, 4), "context_factor": round(target.context_factor, 4)}
    code = _passages_without(script, [*CODE, *texts.get("code", ())])
    facts["changed_code_ratio"] = changed_ratio(before, after, code)
    if texts.get("protected"):
        facts["changed_ratio"] = changed_ratio(before, after, _passages_without(script, texts["protected"]))
        facts["protected_lines"] = {
            part.source: _count_lines(before, after, part.texts, script)
            for part in held_out
            if part.group == "protected"
        }
    return facts | try_round_trips(
        before, after, [*ROUND_TRIP, *CODE, *(text for part in texts.values() for text in part)]
    )


def _count_lines(before: Any, after: Any, texts: Sequence[str], script: Script) -> dict[str, int]:
    """Count the lines of a protected source, those with a character of the target scripts, and of these the ones that changed."""
    lines = [line for text in texts for line in text.splitlines()]
    shared = [line for line in lines if script.occurs_in(line)]
    changed = sum(changed_ratio(before, after, [line]) > 0 for line in shared)
    return {"lines": len(lines), "with_target_script": len(shared), "changed": changed}


def try_round_trips(before: Any, after: Any, texts: Sequence[str]) -> dict[str, Any]:
    """Encode and decode; a text is lost when it returns neither as it was, nor normalised, nor as from the base.

    Where the base has no bytes to fall back on, a text with characters unknown to both is left out and counted.
    """
    lost: list[str] = []
    base_changes = unknown = 0
    characters = {"unknown_characters_before": 0, "unknown_characters_after": 0}
    trip, base_trip = _Trip(after), _Trip(before)
    for text in texts:
        returned, from_base = trip(text), base_trip(text)
        base_changes += from_base.text != text
        characters["unknown_characters_before"] += from_base.num_unknown
        characters["unknown_characters_after"] += returned.num_unknown
        if returned.num_unknown:
            unknown += 1
            is_lost = returned.num_unknown > from_base.num_unknown
        else:
            is_lost = returned.text not in (text, from_base.text, returned.normalised)
        lost += [text] * is_lost
    facts = {"round_trips": len(texts), "round_trips_changed_by_base": base_changes, "round_trips_unknown": unknown}
    facts |= characters
    return {**facts, "lost_ratio": len(lost) / max(1, len(texts)), "lost_texts": [text[:80] for text in lost[:5]]}


class _Returned(NamedTuple):
    text: str
    normalised: str
    "The encoded text, as a SentencePiece decoder writes it."
    num_unknown: int
    "Characters for which there is no piece and no byte."


class _Trip:
    """A tokenizer's way from text to ids and back, no special tokens added."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.backend = tokenizer, tokenizer.backend_tokenizer
        self.unknown = unknown_id(json.loads(self.backend.to_str()))

    def __call__(self, text: str) -> _Returned:
        encoding = self.backend.encode(text, add_special_tokens=False)
        normalised = self.backend.normalizer.normalize_str(text) if self.backend.normalizer else text
        spans = zip(encoding.ids, encoding.offsets, strict=True)
        return _Returned(
            self.tokenizer.decode(encoding.ids, skip_special_tokens=False),
            normalised.replace(SPACE, " ").removeprefix(" "),
            sum(stop - start for index, (start, stop) in spans if index == self.unknown),
        )


def check_gates(gates: Gates, facts: Mapping[str, Any]) -> None:
    """Raise DataError for the first gate that is broken."""
    reasons = {
        "max_changed_ratio": ("changed_ratio", "of protected tokens changed"),
        "max_changed_code_ratio": ("changed_code_ratio", "of the tokens of source code changed"),
    }
    for name, (fact, what) in reasons.items():
        if facts.get(fact, 0.0) > getattr(gates, name):
            raise DataError(
                f"gates.{name} is {getattr(gates, name):g} but {facts[fact]:.2g} {what}; "
                "name only the target's own scripts, and no special token that occurs in such text"
            )
    if facts["lost_ratio"] > gates.max_lost_ratio:
        raise DataError(
            f"gates.max_lost_ratio is {gates.max_lost_ratio:g} but {facts['lost_ratio']:.2g} of {facts['round_trips']:,} texts "
            f"do not survive encoding and decoding, one of them {facts['lost_texts'][0]!r}; choose special tokens that no "
            "text holds"
        )
    if facts["factor"] < gates.min_factor:
        remedy = "raise num_pieces, or learn on more text of the target"
        if facts.get("unknown_characters_before", 0) > facts.get("unknown_characters_after", 0):
            # One unknown token stands for any number of letters: its replacement is longer and readable.
            remedy += ", or set gates.min_factor=0, as the base reads much of it as unknown"
        raise DataError(
            f"gates.min_factor is {gates.min_factor:g} but the target takes only {facts['factor']:.2f} times fewer tokens; {remedy}"
        )


def summarise(facts: Mapping[str, Any]) -> str:
    """Return the line that the stage ends with."""
    before, after = facts["fertility_target_before"], facts["fertility_target_after"]
    return (
        f"target: {before:.2f} -> {after:.2f} tokens per word ({facts['factor']:.2f}x fewer), "
        f"effective context x{facts['context_factor']:.2f}, {_summarise_protected(facts)}"
    )


def _summarise_protected(facts: Mapping[str, Any]) -> str:
    changed = facts.get("changed_ratio")
    if changed is None:
        return "nothing protected was measured"
    if changed:
        return f"{changed:.2g} of protected tokens changed"
    shared = [
        f"{counts['changed']:,} of {counts['lines']:,} lines of {source} changed, which shares the target's script"
        for source, counts in facts["protected_lines"].items()
        if counts["changed"]
    ]
    return (
        "; ".join([*shared, "protected text without that script unchanged"]) if shared else "protected text unchanged"
    )


def _passages_without(script: Script, texts: Iterable[str]) -> Iterator[str]:
    """Yield runs of whole lines without a character of the target scripts, line ends and indents included."""
    for text in texts:
        for is_target, lines in groupby(text.splitlines(keepends=True), key=script.occurs_in):
            if not is_target:
                yield "".join(lines)
