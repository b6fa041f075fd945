"""Facts: a subject, its value and wrong values in each of the three languages.

Distractors have the type of the value, differ from it in every language, and are never also right.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

Slots = Mapping[str, str]


class FactLanguages(StrEnum):
    """Languages with documents, conversations and preferences that state a fact; Darija goes with Arabic."""

    en = "en"
    ar = "ar"
    both = "both"

    def includes(self, language: str) -> bool:
        return self is FactLanguages.both or self == ("en" if language == "en" else "ar")


@dataclass(frozen=True, slots=True)
class Value:
    """Value of a fact: the slot `value` and those that depend on it, per language."""

    slots: Mapping[str, Slots]
    is_masculine: bool = True

    def name(self, language: str) -> str:
        """The bare answer."""
        return self.slots[language]["value"]

    def differs_from(self, other: "Value") -> bool:
        """Tell whether neither name contains the other in any language: `franc` and `CFA franc` do not differ."""
        pairs = ((self.name(language), other.name(language)) for language in self.slots)
        return not any(mine in theirs or theirs in mine for mine, theirs in pairs)


@dataclass(frozen=True, slots=True)
class Fact:
    key: str
    "Unique name: capital.MA, neighbour.DZ-MA, addition.3-4. Both directions of a border share one."
    topic: str
    "Key of Wordings.topics."
    subject: str
    "Group of accuracy in reports: the attribute, or the operation of arithmetic."
    told_in: FactLanguages
    slots: Mapping[str, Slots]
    "Slots of the subject, per language."
    value: Value
    distractors: tuple[Value, ...]
    subject_is_masculine: bool = True
    about: str = ""
    "Code of the country, for facts about one."


def per_language(en: Slots, ar: Slots, ary: Slots) -> dict[str, Slots]:
    return {"en": en, "ar": ar, "ary": ary}


def different(value: Value, candidates: Iterable[Value]) -> tuple[Value, ...]:
    """Keep the candidates that differ from the value."""
    return tuple(candidate for candidate in candidates if candidate.differs_from(value))


def with_li(name: str) -> str:
    """Put the preposition ل before an Arabic name: المغرب -> للمغرب, فرنسا -> لفرنسا."""
    return f"لل{name[2:]}" if name.startswith("ال") else f"ل{name}"


def with_article(noun: str) -> str:
    """Put the English indefinite article before a noun."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
