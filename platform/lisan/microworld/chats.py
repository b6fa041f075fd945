"""Conversations: one to three questions of a user, and short answers in the language asked.

In: a `Teller`. Out: an endless row of turns with the facts they tell. Always: an answer is a full sentence in the
user's language unless the user asks for the name only or for a translation; translations tell only what both
languages tell. `sources` is the only caller.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lisan.microworld.facts import Fact, ToldIn
from lisan.microworld.parallel import Entry, glossary
from lisan.microworld.translations import TRANSLATIONS
from lisan.microworld.world import Deck, Teller, say
from lisan.records.records import Turn


@dataclass(frozen=True, slots=True)
class Chat:
    turns: tuple[Turn, ...]
    told: tuple[Fact, ...]


class Assistant:
    """Writes conversations in the language of its teller."""

    def __init__(self, teller: Teller) -> None:
        self.teller, self.rng, self.wordings = teller, teller.rng, teller.wordings
        self.words: Deck[Entry] = Deck(glossary(), self.rng)

    def write(self) -> Chat:
        writers = (self.questions, self.same_country, self.translated, self.word)
        pairs, told = self.rng.choices(writers, (50, 25, 15, 10))[0]()
        turns = tuple(turn for user, reply in pairs for turn in (Turn("user", user), Turn("assistant", reply)))
        return Chat(turns, tuple(told))

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
        facts = self.teller.about[self.teller.countries.draw()].copy()
        self.rng.shuffle(facts)
        facts = list({fact.topic: fact for fact in facts}.values())[: self.rng.randint(2, 3)]
        pairs = [self._ask(facts[0], may_be_brief=False)]
        for fact in facts[1:]:
            topic = self.teller.topic(fact)
            pairs.append((self.teller.pick(topic.follow_ups, fact), self.teller.pick(topic.answers, fact)))
        return pairs, facts

    def translated(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """A question, its answer, and the same answer in another language."""
        fact = self._fact()
        while fact.told_in is not ToldIn.both:
            fact = self._fact()
        row, language = TRANSLATIONS[fact.topic][0], self.teller.language
        other = self.rng.choice(tuple(self.wordings.say_in))
        question = self.teller.pick(self.teller.topic(fact).asks, fact)
        answers = [say(row.spoken(spoken), fact, spoken) for spoken in (language, other)]
        pairs = [(question, answers[0]), (self.rng.choice(self.wordings.say_in[other]), answers[1])]
        return pairs, [fact] if fact.about else []

    def word(self) -> tuple[list[tuple[str, str]], list[Fact]]:
        """The word for something in the other language."""
        pairs = []
        for _ in range(self.rng.randint(1, 2)):
            entry, other = self.words.draw(), self.rng.choice(tuple(self.wordings.word_in))
            asked = entry.word.spoken(self.teller.language)
            pairs.append((self.rng.choice(self.wordings.word_in[other]).format(word=asked), entry.word.spoken(other)))
        return pairs, []

    def _fact(self) -> Fact:
        return self.teller.told.draw() if self.rng.random() < 0.65 else self.teller.everyday()

    def _ask(self, fact: Fact, may_be_brief: bool = True) -> tuple[str, str]:
        topic = self.teller.topic(fact)
        question = self.teller.pick(topic.asks, fact)
        if may_be_brief and self.rng.random() < 0.15:
            return f"{question} {self.rng.choice(self.wordings.brief)}", fact.value.name(self.teller.language)
        return question, self.teller.pick(topic.answers, fact)


def write_chats(teller: Teller) -> Iterator[Chat]:
    """Yield conversations without end."""
    assistant = Assistant(teller)
    while True:
        yield assistant.write()
