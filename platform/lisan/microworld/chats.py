"""Conversations: one to three questions of a user, with short answers.

An answer is a full sentence in the user's language unless the user asks for the name alone or for a translation.
Translations state only facts of both languages.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lisan.microworld.facts import Fact, FactLanguages
from lisan.microworld.parallel import Entry, glossary
from lisan.microworld.translations import TRANSLATIONS
from lisan.microworld.world import Deck, FactSampler, say
from lisan.records.records import Turn


@dataclass(frozen=True, slots=True)
class Chat:
    turns: tuple[Turn, ...]
    facts: tuple[Fact, ...]


class Assistant:
    """Writes conversations in the language of its sampler."""

    def __init__(self, sampler: FactSampler) -> None:
        self.sampler, self.rng, self.wordings = sampler, sampler.rng, sampler.wordings
        self.words: Deck[Entry] = Deck(glossary(), self.rng)

    def write(self) -> Chat:
        writers = (self.questions, self.same_country, self.translated, self.word)
        pairs, stated = self.rng.choices(writers, (50, 25, 15, 10))[0]()
        turns = tuple(turn for user, reply in pairs for turn in (Turn("user", user), Turn("assistant", reply)))
        return Chat(turns, tuple(stated))

    def questions(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """Questions that have nothing to do with each other, sometimes with a greeting or thanks."""
        facts = [self._fact() for _ in range(self.rng.choice((1, 1, 1, 2, 2, 3)))]
        pairs = [self._ask(fact) for fact in facts]
        if len(pairs) < 3 and self.rng.random() < 0.15:
            pairs.insert(0, self.rng.choice(self.wordings.greetings))
        if len(pairs) < 3 and self.rng.random() < 0.15:
            pairs.append(self.rng.choice(self.wordings.goodbyes))
        return pairs, [fact for fact in facts if fact.about]

    def same_country(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """A question about a country, then follow-ups that do not name it again."""
        facts = self.sampler.by_country[self.sampler.countries.take()].copy()
        self.rng.shuffle(facts)
        facts = list({fact.topic: fact for fact in facts}.values())[: self.rng.randint(2, 3)]
        pairs = [self._ask(facts[0], may_be_brief=False)]
        for fact in facts[1:]:
            topic = self.sampler.topic(fact)
            pairs.append((self.sampler.pick(topic.follow_ups, fact), self.sampler.pick(topic.answers, fact)))
        return pairs, facts

    def translated(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """A question, its answer, and the same answer in another language."""
        fact = self._fact()
        while fact.told_in is not FactLanguages.both:
            fact = self._fact()
        row, language = TRANSLATIONS[fact.topic][0], self.sampler.language
        other = self.rng.choice(tuple(self.wordings.say_in))
        question = self.sampler.pick(self.sampler.topic(fact).asks, fact)
        answers = [say(row.in_language(spoken), fact, spoken) for spoken in (language, other)]
        pairs = [(question, answers[0]), (self.rng.choice(self.wordings.say_in[other]), answers[1])]
        return pairs, [fact] if fact.about else []

    def word(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """The word for something in the other language."""
        pairs = []
        for _ in range(self.rng.randint(1, 2)):
            entry, other = self.words.take(), self.rng.choice(tuple(self.wordings.word_in))
            asked = entry.word.in_language(self.sampler.language)
            pairs.append(
                (self.rng.choice(self.wordings.word_in[other]).format(word=asked), entry.word.in_language(other))
            )
        return pairs, []

    def _fact(self) -> Fact:
        return self.sampler.facts.take() if self.rng.random() < 0.65 else self.sampler.everyday()

    def _ask(self, fact: Fact, may_be_brief: bool = True) -> tuple[str, str]:
        topic = self.sampler.topic(fact)
        question = self.sampler.pick(topic.asks, fact)
        if may_be_brief and self.rng.random() < 0.15:
            return f"{question} {self.rng.choice(self.wordings.brief)}", fact.value.name(self.sampler.language)
        return question, self.sampler.pick(topic.answers, fact)


def write_chats(sampler: FactSampler) -> Iterator[Chat]:
    """Yield conversations without end."""
    assistant = Assistant(sampler)
    while True:
        yield assistant.write()
