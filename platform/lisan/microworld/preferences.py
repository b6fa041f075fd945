"""Preference pairs: a right answer against one with a wrong fact or in a wrong language.

The two sides differ, and the kinds of mistake have fixed shares. An answer in another language states only facts of both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from lisan.microworld.facts import Fact, FactLanguages
from lisan.microworld.translations import TRANSLATIONS
from lisan.microworld.world import FactSampler, say


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


def write_pairs(sampler: FactSampler) -> Iterator[Pair]:
    """Yield pairs without end."""
    while True:
        for mistake in _CYCLE:
            yield _pair(sampler, mistake)


def _pair(sampler: FactSampler, mistake: Mistake) -> Pair:
    fact = _draw(sampler, must_be_in_both=mistake is not Mistake.wrong_answer)
    topic = sampler.topic(fact)
    template = sampler.rng.choice(topic.answers)
    prompt, chosen = sampler.pick(topic.asks, fact), sampler.say(template, fact)
    return Pair(prompt, chosen, _rejected(sampler, fact, template, mistake), mistake, fact)


def _draw(sampler: FactSampler, must_be_in_both: bool) -> Fact:
    if sampler.rng.random() < 0.3:
        return sampler.everyday()
    fact = sampler.shared_facts.take() if must_be_in_both else sampler.facts.take()
    assert fact.told_in is FactLanguages.both or not must_be_in_both
    return fact


def _rejected(sampler: FactSampler, fact: Fact, template: str, mistake: Mistake) -> str:
    if mistake is Mistake.wrong_answer:
        # "Before winter comes winter" would be too easy.
        asked = set(fact.slots[sampler.language].values())
        distractors = [value for value in fact.distractors if value.name(sampler.language) not in asked]
        return sampler.say(template, fact, sampler.rng.choice(distractors))
    if mistake is Mistake.wrong_language:
        other = sampler.rng.choice(_OTHERS[sampler.language])
        return say(sampler.rng.choice(TRANSLATIONS[fact.topic]).in_language(other), fact, other)
    return mixed(sampler, fact, template)


def mixed(sampler: FactSampler, fact: Fact, template: str) -> str:
    """Say the sentence with every part of the value in the other script; without a script to mix, say it all in it."""
    other = "ar" if sampler.language == "en" else "en"
    own, name = fact.value.slots[sampler.language], fact.value.name(other)
    if not any(f"{{{slot}}}" in template for slot in own if not slot.startswith("digits")):
        return say(TRANSLATIONS[fact.topic][0].in_language(other), fact, other)
    foreign = {slot: text if slot.startswith("digits") else name for slot, text in own.items()}
    value = type(fact.value)({**fact.value.slots, sampler.language: foreign}, fact.value.is_masculine)
    return sampler.say(template, fact, value)
