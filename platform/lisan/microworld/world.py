"""The facts of one seed, and samplers that put them into one language.

A sampler gives only facts that its language states, each equally often.
"""

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Generic, TypeVar

from lisan.core.seed import stream
from lisan.microworld import arabic, darija, english
from lisan.microworld.everyday import everyday_facts
from lisan.microworld.facts import Fact, FactLanguages, Value
from lisan.microworld.geography import ATTRIBUTES, country_facts
from lisan.microworld.wordings import Topic, Wordings, fill_template

WORDINGS: Mapping[str, Wordings] = MappingProxyType(
    {
        "en": english.WORDINGS,
        "ar": arabic.WORDINGS,
        "ary": darija.WORDINGS,
    }
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class World:
    seed: int
    geography: tuple[Fact, ...]
    everyday: tuple[Fact, ...]

    def facts_in(self, language: str) -> list[Fact]:
        """Return the facts about countries that a language states, a border from either side."""
        return [fact for fact in self.geography if fact.told_in.includes(language)]


@lru_cache(maxsize=4)
def build_world(seed: int) -> World:
    return World(seed, country_facts(seed), everyday_facts())


class Deck(Generic[T]):
    """Gives items in random order, each once before any is repeated."""

    def __init__(self, items: Iterable[T], rng: random.Random) -> None:
        self._items, self._rng, self._rest = list(items), rng, list[T]()

    def take(self) -> T:
        if not self._rest:
            self._rest = self._items.copy()
            self._rng.shuffle(self._rest)
        return self._rest.pop()

    def take_some(self, number: int) -> list[T]:
        """Draw up to `number` different items."""
        drawn = [self.take() for _ in range(number)]
        return list({id(item): item for item in drawn}.values())


class FactSampler:
    """Samples facts for one source and puts them into its language: decks of facts, a random stream and the wordings."""

    def __init__(self, world: World, language: str, source: str) -> None:
        self.world, self.language = world, language
        self.wordings = WORDINGS[language]
        self.rng = stream(world.seed, source)
        stated = world.facts_in(language)
        self.by_country: dict[str, list[Fact]] = {}
        for fact in stated:
            self.by_country.setdefault(fact.about, []).append(fact)
        self.countries = Deck(self.by_country, self.rng)
        stated = self._one_side(stated)
        self.facts = Deck(stated, self.rng)
        self.shared_facts = Deck([fact for fact in stated if fact.told_in is FactLanguages.both], self.rng)
        self.by_attribute = {
            name: Deck([fact for fact in stated if fact.topic == name], self.rng) for name in ATTRIBUTES
        }
        subjects = {fact.subject: 0 for fact in world.everyday}
        self.by_subject = {
            name: Deck([fact for fact in world.everyday if fact.subject == name], self.rng) for name in subjects
        }

    def _one_side(self, facts: list[Fact]) -> list[Fact]:
        """Keep one randomly chosen side of every border."""
        self.rng.shuffle(mixed := facts.copy())
        return list({fact.key: fact for fact in mixed}.values())

    def topic(self, fact: Fact) -> Topic:
        return self.wordings.topics[fact.topic]

    def everyday(self) -> Fact:
        """Draw a fact of everyday life, every subject as often as another."""
        return self.by_subject[self.rng.choice(tuple(self.by_subject))].take()

    def say(self, template: str, fact: Fact, value: Value | None = None) -> str:
        return say(template, fact, self.language, value)

    def pick(self, templates: tuple[str, ...], fact: Fact, value: Value | None = None) -> str:
        return self.say(self.rng.choice(templates), fact, value)


def say(template: str, fact: Fact, language: str, value: Value | None = None) -> str:
    """Put a fact into words, optionally with another `value`."""
    value = fact.value if value is None else value
    slots = {**fact.slots[language], **value.slots[language]}
    return fill_template(
        template,
        slots,
        subject_is_masculine=fact.subject_is_masculine,
        value_is_masculine=value.is_masculine,
    )
