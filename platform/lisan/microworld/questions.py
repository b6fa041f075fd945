"""Multiple-choice questions in wordings that no other source uses.

In: a `Teller` and a number. Out: questions with four choices. Always: exactly one choice is right, its place is
drawn uniformly, and every fact about a country is asked in every language, also where only the other language tells
it: that is how transfer is measured. `sources` is the only caller.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from lisan.core.seed import stream
from lisan.microworld.facts import Fact, Value
from lisan.microworld.world import Teller, World

NUM_CHOICES = 4
_EVERYDAY_PER_SUBJECT = 24


@dataclass(frozen=True, slots=True)
class Asked:
    question: str
    choices: tuple[str, ...]
    answer: int
    fact: Fact


def write_questions(teller: Teller, number: int | None) -> Iterator[Asked]:
    """Yield the questions of one language; all languages ask about the same facts in the same order."""
    for fact in islice(facts_asked(teller.world), number):
        yield _ask(teller, fact)


def facts_asked(world: World) -> Iterator[Fact]:
    """Yield what is asked, mixed: a prefix is a fair sample."""
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


def _ask(teller: Teller, fact: Fact) -> Asked:
    wrong: list[Value] = []
    for candidate in teller.rng.sample(fact.distractors, len(fact.distractors)):
        if all(candidate.name(language) != other.name(language) for other in wrong for language in other.slots):
            wrong.append(candidate)
        if len(wrong) == NUM_CHOICES - 1:
            break
    answer = teller.rng.randrange(NUM_CHOICES)
    values = [*wrong[:answer], fact.value, *wrong[answer:]]
    question = teller.pick(teller.topic(fact).held_out, fact)
    return Asked(question, tuple(value.name(teller.language) for value in values), answer, fact)
