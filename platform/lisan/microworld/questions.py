"""Multiple-choice questions in wordings that no other source uses.

Exactly one choice is right, at a uniformly random position. Every fact about a country is asked in every language, also if
only the other language states it: this measures transfer.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lisan.core.seed import stream
from lisan.microworld.facts import Fact, Value
from lisan.microworld.world import FactSampler, World

NUM_CHOICES = 4
_EVERYDAY_PER_SUBJECT = 24


@dataclass(frozen=True, slots=True)
class ChoiceQuestion:
    question: str
    choices: tuple[str, ...]
    answer: int
    fact: Fact


def write_questions(sampler: FactSampler, number: int | None) -> Iterator[ChoiceQuestion]:
    """Yield the questions of one language; all languages ask about the same facts in the same order."""
    for fact in islice(facts_asked(sampler.world), number):
        yield _ask(sampler, fact)


def facts_asked(world: World) -> Iterator[Fact]:
    """Yield the facts to ask in random order: a prefix is a fair sample."""
    rng = stream(world.seed, "questions")
    geography = list({fact.key: fact for fact in world.geography}.values())
    by_subject: dict[str, list[Fact]] = {}
    for fact in world.everyday:
        by_subject.setdefault(fact.subject, []).append(fact)
    sampled = [
        fact for facts in by_subject.values() for fact in rng.sample(facts, min(len(facts), _EVERYDAY_PER_SUBJECT))
    ]
    asked = [*geography, *sampled]
    rng.shuffle(asked)
    yield from asked


def _ask(sampler: FactSampler, fact: Fact) -> ChoiceQuestion:
    wrong: list[Value] = []
    for candidate in sampler.rng.sample(fact.distractors, len(fact.distractors)):
        if all(candidate.name(language) != other.name(language) for other in wrong for language in other.slots):
            wrong.append(candidate)
        if len(wrong) == NUM_CHOICES - 1:
            break
    answer = sampler.rng.randrange(NUM_CHOICES)
    values = [*wrong[:answer], fact.value, *wrong[answer:]]
    question = sampler.pick(sampler.topic(fact).held_out, fact)
    return ChoiceQuestion(question, tuple(value.name(sampler.language) for value in values), answer, fact)
