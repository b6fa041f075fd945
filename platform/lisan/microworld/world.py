"""The world of one seed: its facts, who tells them, and how one language puts them into words.

In: a seed or a config. Out: `World`, `Teller`. Always: a teller hands out only facts that its language tells, and hands out every
one of them equally often.
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
from lisan.microworld.facts import Fact, ToldIn, Value
from lisan.microworld.geography import ATTRIBUTES, country_facts
from lisan.microworld.wordings import Topic, Wordings, fill

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

    def told(self, language: str) -> list[Fact]:
        """Return the facts about countries that a language tells, a border from either side."""
        return [fact for fact in self.geography if fact.told_in.reaches(language)]


@lru_cache(maxsize=4)
def build_world(seed: int) -> World:
    return World(seed, country_facts(seed), everyday_facts())


class Deck(Generic[T]):
    """Hands out items in random order, and none again before all have been handed out."""

    def __init__(self, items: Iterable[T], rng: random.Random) -> None:
        self._items, self._rng, self._rest = list(items), rng, list[T]()

    def draw(self) -> T:
        if not self._rest:
            self._rest = self._items.copy()
            self._rng.shuffle(self._rest)
        return self._rest.pop()

    def draw_some(self, number: int) -> list[T]:
        """Draw up to `number` different items."""
        drawn = [self.draw() for _ in range(number)]
        return list({id(item): item for item in drawn}.values())


class Teller:
    """One language's voice for one source: decks of facts, a random stream and the wordings."""

    def __init__(self, world: World, language: str, source: str) -> None:
        self.world, self.language = world, language
        self.wordings = WORDINGS[language]
        self.rng = stream(world.seed, source)
        told = world.told(language)
        self.about: dict[str, list[Fact]] = {}
        for fact in told:
            self.about.setdefault(fact.about, []).append(fact)
        self.countries = Deck(self.about, self.rng)
        told = self._one_side(told)
        self.told = Deck(told, self.rng)
        self.told_in_both = Deck([fact for fact in told if fact.told_in is ToldIn.both], self.rng)
        self.by_attribute = {name: Deck([fact for fact in told if fact.topic == name], self.rng) for name in ATTRIBUTES}
        subjects = {fact.subject: 0 for fact in world.everyday}
        self.by_subject = {
            name: Deck([fact for fact in world.everyday if fact.subject == name], self.rng) for name in subjects
        }

    def _one_side(self, facts: list[Fact]) -> list[Fact]:
        """Keep of every border the view from one side, drawn by lot."""
        self.rng.shuffle(mixed := facts.copy())
        return list({fact.key: fact for fact in mixed}.values())

    def topic(self, fact: Fact) -> Topic:
        return self.wordings.topics[fact.topic]

    def everyday(self) -> Fact:
        """Draw a fact of everyday life, every subject as often as another."""
        return self.by_subject[self.rng.choice(tuple(self.by_subject))].draw()

    def say(self, template: str, fact: Fact, value: Value | None = None) -> str:
        return say(template, fact, self.language, value)

    def pick(self, templates: tuple[str, ...], fact: Fact, value: Value | None = None) -> str:
        return self.say(self.rng.choice(templates), fact, value)


def say(template: str, fact: Fact, language: str, value: Value | None = None) -> str:
    """Put a fact into words, or what it would be with another `value`."""
    value = fact.value if value is None else value
    slots = {**fact.slots[language], **value.slots[language]}
    return fill(
        template,
        slots,
        subject_is_masculine=fact.subject_is_masculine,
        value_is_masculine=value.is_masculine,
    )
