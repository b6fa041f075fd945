"""What an expanded tokenizer must keep to before it is written.

In: the base and the new tokenizer, held-out text by group (`target`, `protected`) and source. Out: the facts of the
manifest. Always: a broken gate is one sentence that names it. `tokens/expand.py` is the caller.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lisan.core.errors import ConfigError, DataError
from lisan.tokens.fertility import Comparison, FertilityRow, changed_ratio, measure, pool
from lisan.tokens.merges import Script


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    max_changed_ratio: float = 1e-5
    "Share of the tokens of protected text (lines without the target scripts) whose encoding may change."
    min_factor: float = 1.0
    "How many times fewer tokens the target must take."

    def __post_init__(self) -> None:
        if not 0 <= self.max_changed_ratio <= 1:
            raise ConfigError(f"gates.max_changed_ratio must lie in 0 .. 1, got {self.max_changed_ratio}")
        if self.min_factor < 1:
            raise ConfigError(f"gates.min_factor must be >= 1 (1 asks for no gain), got {self.min_factor}")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Text of one source that was not learned on."""

    group: str
    source: str
    language: str
    texts: Sequence[str]


def measure_groups(tokenizer: Any, held_out: Sequence[HeldOut]) -> dict[str, list[FertilityRow]]:
    """Return a row a source, by group."""
    rows: dict[str, list[FertilityRow]] = {}
    for part in held_out:
        rows.setdefault(part.group, []).append(measure(tokenizer, part.texts, part.source, part.language))
    return rows


def describe(rows: Mapping[str, Sequence[FertilityRow]], moment: str) -> dict[str, Any]:
    """Return pooled figures a group (`fertility_target_after`) and the rows themselves."""
    facts: dict[str, Any] = {f"fertility_rows_{moment}": [row.to_plain() for part in rows.values() for row in part]}
    for group, part in rows.items():
        row = pool(part, group)
        facts[f"fertility_{group}_{moment}"] = round(row.fertility, 4)
        facts[f"bytes_per_token_{group}_{moment}"] = round(row.bytes_per_token, 4)
        facts[f"single_byte_ratio_{group}_{moment}"] = round(row.single_byte_ratio, 4)
    return facts


def compare(before: Any, after: Any, held_out: Sequence[HeldOut], script: Script) -> dict[str, Any]:
    """Measure both tokenizers; `factor`, `context_factor` and `changed_ratio` are what the gates look at."""
    old, new = measure_groups(before, held_out), measure_groups(after, held_out)
    target = Comparison(pool(old["target"], "target"), pool(new["target"], "target"))
    protected = [text for part in held_out if part.group == "protected" for text in part.texts]
    facts = {**describe(old, "before"), **describe(new, "after")}
    facts |= {"factor": round(target.factor, 4), "context_factor": round(target.context_factor, 4)}
    if protected:
        facts["changed_ratio"] = changed_ratio(before, after, _lines_without(script, protected))
    return facts


def check_gates(gates: Gates, facts: Mapping[str, Any]) -> None:
    """Raise DataError for the first gate that is broken."""
    changed, factor = facts.get("changed_ratio", 0.0), facts["factor"]
    if changed > gates.max_changed_ratio:
        raise DataError(
            f"gates.max_changed_ratio is {gates.max_changed_ratio:g} but {changed:.2g} of protected tokens changed; "
            "name only the target's own scripts, and no special token that occurs in protected text"
        )
    if factor < gates.min_factor:
        raise DataError(
            f"gates.min_factor is {gates.min_factor:g} but the target takes only {factor:.2f} times fewer tokens; "
            "raise num_pieces, or learn on more text of the target"
        )


def _lines_without(script: Script, texts: Iterable[str]) -> Iterable[str]:
    return (line for text in texts for line in text.splitlines() if line and not script.occurs_in(line))
