"""Preference pairs: the right answer in the right language against one that is wrong in fact or in language.

In: a `Teller`. Out: an endless row of prompts with a chosen and a rejected answer. Always: the two sides differ; the kinds of
mistake come in fixed shares; an answer in another language tells only what both languages tell.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lisan.microworld.facts import Fact, ToldIn
from lisan.microworld.translations import TRANSLATIONS
from lisan.microworld.world import Teller, say


class Mistake(StrEnum):
    wrong_answer = "wrong_answer"
    wrong_language = "wrong_language"
    mixed_language = "mixed_language"
    "The sentence is in the right language, the name in the other script."


_CYCLE = (
    Mistake.wrong_answer,
    Mistake.wrong_language,
    Mistake.wrong_answer,
    Mistake.wrong_language,
    Mistake.mixed_language,
)
_OTHERS = {"en": ("ar", "ary"), "ar": ("en", "en", "ary"), "ary": ("en", "ar")}
"Languages of the wrong answer, with their shares."


@dataclass(frozen=True, slots=True)
class Pair:
    prompt: str
    chosen: str
    rejected: str
    mistake: Mistake
    fact: Fact


def write_pairs(teller: Teller) -> Iterator[Pair]:
    """Yield pairs without end."""
    while True:
        for mistake in _CYCLE:
            yield _pair(teller, mistake)


def _pair(teller: Teller, mistake: Mistake) -> Pair:
    fact = _draw(teller, must_be_in_both=mistake is not Mistake.wrong_answer)
    topic = teller.topic(fact)
    template = teller.rng.choice(topic.answers)
    prompt, chosen = teller.pick(topic.asks, fact), teller.say(template, fact)
    return Pair(prompt, chosen, _rejected(teller, fact, template, mistake), mistake, fact)


def _draw(teller: Teller, must_be_in_both: bool) -> Fact:
    if teller.rng.random() < 0.3:
        return teller.everyday()
    fact = teller.told_in_both.draw() if must_be_in_both else teller.told.draw()
    assert fact.told_in is ToldIn.both or not must_be_in_both
    return fact


def _rejected(teller: Teller, fact: Fact, template: str, mistake: Mistake) -> str:
    if mistake is Mistake.wrong_answer:
        # "Before winter comes winter" would be too easy.
        asked = set(fact.slots[teller.language].values())
        distractors = [value for value in fact.distractors if value.name(teller.language) not in asked]
        return teller.say(template, fact, teller.rng.choice(distractors))
    if mistake is Mistake.wrong_language:
        other = teller.rng.choice(_OTHERS[teller.language])
        return say(teller.rng.choice(TRANSLATIONS[fact.topic]).spoken(other), fact, other)
    return mixed(teller, fact, template)


def mixed(teller: Teller, fact: Fact, template: str) -> str:
    """Say the sentence with every part of the value in the other script; without a script to mix, say it all in it."""
    other = "ar" if teller.language == "en" else "en"
    own, name = fact.value.slots[teller.language], fact.value.name(other)
    if not any(f"{{{slot}}}" in template for slot in own if not slot.startswith("digits")):
        return say(TRANSLATIONS[fact.topic][0].spoken(other), fact, other)
    foreign = {slot: text if slot.startswith("digits") else name for slot, text in own.items()}
    value = type(fact.value)({**fact.value.slots, teller.language: foreign}, fact.value.is_masculine)
    return teller.say(template, fact, value)
