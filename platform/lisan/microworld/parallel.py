"""Parallel documents: English and Arabic of the same sentences, and a glossary of every name and word.

States only facts of both languages; a glossary entry never says which names belong together.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lisan.microworld.almanac import DAYS, MONTHS, SEASONS, Word
from lisan.microworld.countries import CONTINENTS, COUNTRIES, CURRENCIES, LANGUAGES
from lisan.microworld.documents import Text
from lisan.microworld.facts import Fact, with_li
from lisan.microworld.families import FAMILIES
from lisan.microworld.numbers import ar_number, ary_number, en_number
from lisan.microworld.translations import GLOSSARY, TRANSLATIONS
from lisan.microworld.wordings import fill_template
from lisan.microworld.world import WORDINGS, Deck, FactSampler, say

_SENTENCE_LAYOUTS = (
    "English: {en}\nArabic: {ar}",
    "العربية: {ar}\nالإنجليزية: {en}",
    "{en}\n{ar}",
    "{ar}\n{en}",
    "{en} = {ar}",
    "{ar} = {en}",
    "{en} In Arabic: {ar}",
    "{ar} بالإنجليزية: {en}",
)
_BLOCK_LAYOUTS = (
    "English:\n{en}\nArabic:\n{ar}",
    "العربية:\n{ar}\nالإنجليزية:\n{en}",
    "{en}\n\n{ar}",
    "{ar}\n\n{en}",
    "Translate into Arabic:\n{en}\n{ar}",
    "ترجم إلى الإنجليزية:\n{ar}\n{en}",
)
_WORD_LAYOUTS = (
    "{en} = {ar}",
    "{ar} = {en}",
    "{en}: {ar}",
    "{ar}: {en}",
    "{en} is {ar} in Arabic.",
    "{ar} بالإنجليزية هي {en}.",
    "In Arabic, {en} is called {ar}.",
    "The English word for {ar} is {en}.",
    "نقول بالإنجليزية {en} ونقول بالعربية {ar}.",
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A word of the glossary and what kind of thing it names."""

    word: Word
    category: str


def glossary() -> list[Entry]:
    """Return every name and word of the world in the three languages."""
    names = {
        "country": [country.name for country in COUNTRIES.values()],
        "capital": [country.capital for country in COUNTRIES.values() if country.capital],
        "currency": list(CURRENCIES.values()),
        "language": list(LANGUAGES.values()),
        "continent": list(CONTINENTS.values()),
    }
    entries = [Entry(Word(name.en, name.ar, name.ar), kind) for kind, found in names.items() for name in found]
    entries += [Entry(Word(en_number(n), ar_number(n), ary_number(n)), "number") for n in range(101)]
    entries += [Entry(word, "calendar") for word in (*DAYS, *MONTHS, *SEASONS)]
    nouns = [noun for family in FAMILIES.values() for noun in family.nouns]
    entries += [Entry(Word(noun.en, noun.ar, noun.ary), "noun") for noun in nouns]
    return entries


class Translator:
    """Writes parallel documents: sentences about facts stated in both, and the glossary."""

    def __init__(self, sampler: FactSampler) -> None:
        self.sampler, self.rng = sampler, sampler.rng
        entries = glossary()
        self.by_category = {
            category: Deck([entry for entry in entries if entry.category == category], self.rng)
            for category in {entry.category: 0 for entry in entries}
        }
        self.all = Deck(entries, self.rng)

    def write(self) -> Text:
        return self.rng.choices((self.sentences, self.paragraph, self.words, self.names), (30, 22, 30, 18))[0]()

    def sentences(self) -> Text:
        """Sentence by sentence, in one layout."""
        facts, layout = self._facts(self.rng.randint(2, 5)), self.rng.choice(_SENTENCE_LAYOUTS)
        return Text("\n".join(layout.format(**self._both(fact)) for fact in facts), _about_countries(facts))

    def paragraph(self) -> Text:
        """A short paragraph and its translation."""
        facts = self._facts(self.rng.randint(2, 5))
        pairs = [self._both(fact) for fact in facts]
        blocks = {language: " ".join(pair[language] for pair in pairs) for language in ("en", "ar")}
        return Text(self.rng.choice(_BLOCK_LAYOUTS).format(**blocks), _about_countries(facts))

    def words(self) -> Text:
        """Words of one category: a country is never beside its own capital."""
        deck = self.by_category[self.all.take().category]
        layout = self.rng.choice(_WORD_LAYOUTS)
        entries = deck.take_some(self.rng.randint(5, 9))
        return Text("\n".join(layout.format(en=entry.word.en, ar=entry.word.ar) for entry in entries))

    def names(self) -> Text:
        """Sentences about a single name of one category."""
        category, layout = self.rng.choice(tuple(GLOSSARY)), self.rng.choice(_SENTENCE_LAYOUTS)
        entries = self.by_category[category].take_some(self.rng.randint(3, 5))
        return Text("\n".join(layout.format(**self._name_sentence(entry)) for entry in entries))

    def _facts(self, number: int) -> list[Fact]:
        if self.rng.random() < 0.7:
            return self.sampler.shared_facts.take_some(number)
        return [self.sampler.everyday() for _ in range(number)]

    def _both(self, fact: Fact) -> dict[str, str]:
        row = self.rng.choice(TRANSLATIONS[fact.topic])
        return {language: say(row.in_language(language), fact, language) for language in ("en", "ar")}

    def _name_sentence(self, entry: Entry) -> dict[str, str]:
        row, index = self.rng.choice(GLOSSARY[entry.category]), self.rng.randrange(10)
        return {language: name_sentence(row, entry.word, language, index) for language in ("en", "ar")}


def name_sentence(row: Word, word: Word, language: str, index: int) -> str:
    """Say something about a name and the person at `index` of the names, which alternate women and men."""
    name, text = WORDINGS[language].names[index], word.in_language(language)
    slots = {"name": name, "word": text, "by_word": f"ب{text}", "to_word": with_li(text)}
    return fill_template(row.in_language(language), slots, subject_is_masculine=index % 2 == 1, value_is_masculine=True)


def _about_countries(facts: list[Fact]) -> tuple[Fact, ...]:
    return tuple(fact for fact in facts if fact.about)


def write_parallel(sampler: FactSampler) -> Iterator[Text]:
    """Yield parallel documents without end."""
    translator = Translator(sampler)
    while True:
        yield translator.write()
