"""Documents in one language: articles, quizzes, lists, comparisons, dialogues, lessons, families, sequences, stories.

Documents state only facts of their language, and carry the facts about countries that they state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from lisan.microworld.almanac import DAYS, MONTHS, SEASONS, Word
from lisan.microworld.everyday import clash, thing_en
from lisan.microworld.facts import Fact
from lisan.microworld.families import FAMILIES, Noun
from lisan.microworld.numbers import (
    Case,
    Counted,
    count_ar,
    count_ary,
    count_en,
    definite,
)
from lisan.microworld.wordings import capitalise, fill_template, in_sentence, join_words
from lisan.microworld.world import FactSampler

_COUNTED_FAMILIES = ("animal", "fruit", "school", "clothing", "vehicle")
_SEQUENCES = {"day": DAYS, "month": MONTHS, "season": SEASONS}
_FEWEST_WORDS = {"en": 45, "ar": 38, "ary": 40}
"An article that is shorter goes on to another country, at most twice. Arabic writes articles and pronouns onto words."


_SHARED_CURRENCIES = ("the euro", "the CFA franc")
"One money for several countries; two dollars are only called alike."


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    facts: tuple[Fact, ...] = ()
    "Facts about countries only."


Writer = Callable[[FactSampler], Text]


def write_documents(sampler: FactSampler) -> Iterator[Text]:
    """Yield documents without end."""
    writers, weights = zip(*_WEIGHTS.items(), strict=True)
    while True:
        writer: Writer = sampler.rng.choices(writers, weights)[0]
        yield writer(sampler)


def article(sampler: FactSampler) -> Text:
    """State all facts of a country, and of another if they are few."""
    text, stated = _section(sampler, sampler.countries.take())
    for _ in range(2):
        if len(text.split()) >= _FEWEST_WORDS[sampler.language]:
            break
        section, more = _section(sampler, sampler.countries.take())
        text, stated = f"{text}\n\n{section}", [*stated, *more]
    return Text(text, tuple(stated))


def _section(sampler: FactSampler, code: str) -> tuple[str, list[Fact]]:
    rng, facts = sampler.rng, sampler.by_country[code].copy()
    rng.shuffle(facts)
    sentences = [sampler.pick(sampler.wordings.openings, facts[0])] if rng.random() < 0.7 else []
    for index, fact in enumerate(facts):
        topic = sampler.topic(fact)
        leans = index > 0 and rng.random() < 0.4
        sentences.append(sampler.pick(topic.continuations if leans else topic.statements, fact))
    if rng.random() < 0.6:
        fact = rng.choice(facts)
        sentence = sampler.pick(sampler.topic(fact).statements, fact)
        sentences.append(rng.choice(sampler.wordings.recaps).format(sentence=sentence))
    elif rng.random() < 0.5:
        sentences.append(sampler.pick(sampler.wordings.closings, facts[0]))
    return " ".join(sentences), facts


def quiz(sampler: FactSampler) -> Text:
    """Ask and answer, with the bare answer or a full sentence; sometimes with something of everyday life between."""
    rng, stated = sampler.rng, sampler.facts.take_some(sampler.rng.randint(3, 6))
    facts = [*stated, *(sampler.everyday() for _ in range(rng.choice((0, 0, 1, 2))))]
    rng.shuffle(facts)
    layout, is_brief = rng.choice(sampler.wordings.quiz_layouts), rng.random() < 0.6
    return Text("\n".join(_quiz_item(sampler, fact, layout, is_brief) for fact in facts), tuple(stated))


def _quiz_item(sampler: FactSampler, fact: Fact, layout: str, is_brief: bool) -> str:
    topic = sampler.topic(fact)
    answer = fact.value.name(sampler.language) if is_brief else sampler.pick(topic.answers, fact)
    return layout.format(question=sampler.pick(topic.quiz, fact), answer=answer)


def listing(sampler: FactSampler) -> Text:
    """List countries, each with its value of one attribute."""
    attribute = sampler.facts.take().topic
    stated = sampler.by_attribute[attribute].take_some(sampler.rng.randint(4, 8))
    head = sampler.rng.choice(sampler.wordings.list_heads[attribute])
    line = sampler.rng.choice(sampler.wordings.list_lines)
    return Text("\n".join([head, *(sampler.say(line, fact) for fact in stated)]), tuple(stated))


def comparison(sampler: FactSampler) -> Text:
    """Contrast countries, then name two with a value in common."""
    stated = [fact for _ in range(3) for fact in sampler.by_attribute[sampler.facts.take().topic].take_some(2)]
    pairs = zip(stated[::2], stated[1::2], strict=False)
    sentences = [_contrast(sampler, first, second) for first, second in pairs]
    shared, common = _shared_fact(sampler)
    return Text(" ".join([*sentences, *shared]), (*stated[: 2 * (len(stated) // 2)], *common))


def _contrast(sampler: FactSampler, first: Fact, second: Fact) -> str:
    before, after = (sampler.rng.choice(sampler.topic(fact).statements) for fact in (first, second))
    beginning, end = sampler.say(before, first).removesuffix("."), in_sentence(sampler.say(after, second), after)
    return sampler.rng.choice(sampler.wordings.contrasts).format(first=beginning, second=end)


def _shared_fact(sampler: FactSampler) -> tuple[list[str], list[Fact]]:
    attribute = sampler.rng.choice(tuple(sampler.wordings.both))
    first = sampler.by_attribute[attribute].take()
    if attribute == "currency" and first.value.name("en") not in _SHARED_CURRENCIES:
        return [], []
    others = [
        fact
        for fact in sampler.world.facts_in(sampler.language)
        if fact.topic == attribute and fact.value.name("en") == first.value.name("en") and fact.about != first.about
    ]
    if not others:
        return [], []
    second = sampler.rng.choice(others)
    names = {"a": first.slots[sampler.language]["country"], "b": second.slots[sampler.language]["country"]}
    template = sampler.rng.choice(sampler.wordings.both[attribute])
    sentence = fill_template(
        template,
        {**first.value.slots[sampler.language], **names},
        subject_is_masculine=first.subject_is_masculine,
        value_is_masculine=True,
    )
    return [sentence], [first, second]


def dialogue(sampler: FactSampler) -> Text:
    """Two people: one asks, the other knows."""
    rng, wordings = sampler.rng, sampler.wordings
    a, b = rng.sample(wordings.names, 2)
    stated = sampler.facts.take_some(rng.randint(2, 3))
    facts = [*stated, *(sampler.everyday() for _ in range(rng.choice((0, 1))))]
    lines = [f"{a}: {rng.choice(wordings.dialogue_openings).format(a=a, b=b)}"]
    for fact in facts:
        topic = sampler.topic(fact)
        lines += [f"{a}: {sampler.pick(topic.quiz, fact)}", f"{b}: {sampler.pick(topic.answers, fact)}"]
    lines.append(f"{a}: {rng.choice(wordings.thanks).format(b=b)}")
    return Text("\n".join(lines), tuple(stated))


def lesson(sampler: FactSampler) -> Text:
    """Say several things of everyday life: one subject, or all mixed."""
    rng = sampler.rng
    deck = sampler.by_subject[rng.choice(tuple(sampler.by_subject))]
    take = deck.take if rng.random() < 0.6 else sampler.everyday
    facts = [take() for _ in range(rng.randint(5, 9))]
    sentences = [sampler.pick(sampler.topic(fact).statements, fact) for fact in facts]
    # An equation ends without a full stop, so it needs a line of its own.
    may_run_on = all(sentence.endswith(".") for sentence in sentences)
    return Text((" " if may_run_on and rng.random() < 0.5 else "\n").join(sentences))


def family(sampler: FactSampler) -> Text:
    """List things of one family, and find the one that does not belong."""
    rng, wordings = sampler.rng, sampler.wordings
    chosen = rng.choice(tuple(FAMILIES.values()))
    things = [_thing(sampler, noun) for noun in rng.sample(chosen.nouns, 4)]
    stranger = rng.choice([other for other in FAMILIES.values() if not clash(other.key, chosen.key)])
    odd = _thing(sampler, rng.choice(stranger.nouns))
    name = Word(chosen.en_plural, chosen.ar_plural, chosen.ary_plural).in_language(sampler.language)
    joined = join_words(things, wordings)
    mixed = [*things[:3], odd]
    rng.shuffle(mixed)
    first = capitalise(rng.choice(wordings.family_lists).format(family_plural=name, things=joined))
    second = capitalise(
        rng.choice(wordings.odd_one_out).format(
            family_plural=name,
            odd=odd,
            all=wordings.comma.join(mixed),
            things=join_words(things[:3], wordings),
        )
    )
    return Text(f"{first} {second}")


def _thing(sampler: FactSampler, noun: Noun) -> str:
    return Word(thing_en(noun), definite(noun.ar), definite(noun.ary)).in_language(sampler.language)


def sequence(sampler: FactSampler) -> Text:
    """Recite the days, the months or the seasons."""
    wordings, kind = sampler.wordings, sampler.rng.choice(tuple(_SEQUENCES))
    words = [word.in_language(sampler.language) for word in _SEQUENCES[kind]]
    joined = join_words(words, wordings)
    text = sampler.rng.choice(wordings.sequences).format(kind=wordings.sequence_kinds[kind], words=joined)
    more = lesson(sampler).text
    return Text(f"{capitalise(text)} {more}")


def story(sampler: FactSampler) -> Text:
    """Tell word problems in which things are counted."""
    return Text(" ".join(_problem(sampler) for _ in range(sampler.rng.randint(2, 4))))


def _problem(sampler: FactSampler) -> str:
    rng, wordings = sampler.rng, sampler.wordings
    nouns = [noun for key in _COUNTED_FAMILIES for noun in FAMILIES[key].nouns if noun.ar_plural and noun.en_plural]
    noun, first, second = rng.choice(nouns), rng.randint(2, 12), rng.randint(2, 12)
    index = rng.randrange(len(wordings.names))
    slots = {
        "name": wordings.names[index],
        "first": _count(sampler.language, first, noun),
        "second": _count(sampler.language, second, noun),
        "total": _count(sampler.language, first + second, noun),
        "first_accusative": _count(sampler.language, first, noun, Case.accusative),
        "second_accusative": _count(sampler.language, second, noun, Case.accusative),
    }
    # Names of women and men alternate.
    return fill_template(
        rng.choice(wordings.stories), slots, subject_is_masculine=index % 2 == 1, value_is_masculine=True
    )


def _count(language: str, number: int, noun: Noun, case: Case = Case.nominative) -> str:
    if language == "en":
        return count_en(number, noun.en, noun.en_plural)
    if language == "ary":
        return count_ary(number, noun.ary, noun.ary_plural)
    return count_ar(number, Counted(noun.ar, noun.ar_plural, noun.is_masculine), case)


_WEIGHTS: dict[Writer, float] = {
    article: 48,
    quiz: 16,
    listing: 7,
    comparison: 8,
    dialogue: 5,
    lesson: 10,
    family: 2,
    sequence: 1,
    story: 3,
}
"Percent of the documents."
