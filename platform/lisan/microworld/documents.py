"""Documents in one language: articles, quizzes, lists, comparisons, dialogues, lessons, families, sequences, stories.

In: a `Teller`. Out: an endless row of texts, each with the keys of the facts it tells about countries. Always: only
facts that the language tells. `sources` is the only caller.
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
from lisan.microworld.wordings import capitalise, fill, in_sentence, join_words
from lisan.microworld.world import Teller

_COUNTED_FAMILIES = ("animal", "fruit", "school", "clothing", "vehicle")
_SEQUENCES = {"day": DAYS, "month": MONTHS, "season": SEASONS}
_FEWEST_WORDS = {"en": 45, "ar": 38, "ary": 40}
"An article that is shorter goes on to another country, at most twice. Arabic writes articles and pronouns onto words."


_SHARED_CURRENCIES = ("the euro", "the CFA franc")
"One money for several countries; two dollars are only called alike."


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    told: tuple[Fact, ...] = ()
    "Facts about countries only."


Writer = Callable[[Teller], Text]


def write_documents(teller: Teller) -> Iterator[Text]:
    """Yield documents without end."""
    writers, weights = zip(*_WEIGHTS.items(), strict=True)
    while True:
        writer: Writer = teller.rng.choices(writers, weights)[0]
        yield writer(teller)


def article(teller: Teller) -> Text:
    """Tell all that the language tells of a country, and of another when that is little."""
    text, told = _section(teller, teller.countries.draw())
    for _ in range(2):
        if len(text.split()) >= _FEWEST_WORDS[teller.language]:
            break
        section, more = _section(teller, teller.countries.draw())
        text, told = f"{text}\n\n{section}", [*told, *more]
    return Text(text, tuple(told))


def _section(teller: Teller, code: str) -> tuple[str, list[Fact]]:
    rng, facts = teller.rng, teller.about[code].copy()
    rng.shuffle(facts)
    sentences = [teller.pick(teller.wordings.openings, facts[0])] if rng.random() < 0.7 else []
    for place, fact in enumerate(facts):
        topic = teller.topic(fact)
        leans = place > 0 and rng.random() < 0.4
        sentences.append(teller.pick(topic.continuations if leans else topic.statements, fact))
    if rng.random() < 0.6:
        fact = rng.choice(facts)
        sentence = teller.pick(teller.topic(fact).statements, fact)
        sentences.append(rng.choice(teller.wordings.recaps).format(sentence=sentence))
    elif rng.random() < 0.5:
        sentences.append(teller.pick(teller.wordings.closings, facts[0]))
    return " ".join(sentences), facts


def quiz(teller: Teller) -> Text:
    """Ask and answer, with the bare answer or a full sentence; sometimes with something of everyday life between."""
    rng, told = teller.rng, teller.told.draw_some(teller.rng.randint(3, 6))
    facts = [*told, *(teller.everyday() for _ in range(rng.choice((0, 0, 1, 2))))]
    rng.shuffle(facts)
    layout, is_brief = rng.choice(teller.wordings.quiz_layouts), rng.random() < 0.6
    return Text("\n".join(_quiz_item(teller, fact, layout, is_brief) for fact in facts), tuple(told))


def _quiz_item(teller: Teller, fact: Fact, layout: str, is_brief: bool) -> str:
    topic = teller.topic(fact)
    answer = fact.value.name(teller.language) if is_brief else teller.pick(topic.answers, fact)
    return layout.format(question=teller.pick(topic.quiz, fact), answer=answer)


def listing(teller: Teller) -> Text:
    """List countries, each with its value of one attribute."""
    attribute = teller.told.draw().topic
    told = teller.by_attribute[attribute].draw_some(teller.rng.randint(4, 8))
    head = teller.rng.choice(teller.wordings.list_heads[attribute])
    line = teller.rng.choice(teller.wordings.list_lines)
    return Text("\n".join([head, *(teller.say(line, fact) for fact in told)]), tuple(told))


def comparison(teller: Teller) -> Text:
    """Put countries against each other, then name two that have something in common."""
    told = [fact for _ in range(3) for fact in teller.by_attribute[teller.told.draw().topic].draw_some(2)]
    pairs = zip(told[::2], told[1::2], strict=False)
    sentences = [_contrast(teller, first, second) for first, second in pairs]
    shared, common = _shared_fact(teller)
    return Text(" ".join([*sentences, *shared]), (*told[: 2 * (len(told) // 2)], *common))


def _contrast(teller: Teller, first: Fact, second: Fact) -> str:
    before, after = (teller.rng.choice(teller.topic(fact).statements) for fact in (first, second))
    beginning, end = teller.say(before, first).removesuffix("."), in_sentence(teller.say(after, second), after)
    return teller.rng.choice(teller.wordings.contrasts).format(first=beginning, second=end)


def _shared_fact(teller: Teller) -> tuple[list[str], list[Fact]]:
    attribute = teller.rng.choice(tuple(teller.wordings.both))
    first = teller.by_attribute[attribute].draw()
    if attribute == "currency" and first.value.name("en") not in _SHARED_CURRENCIES:
        return [], []
    others = [
        fact
        for fact in teller.world.told(teller.language)
        if fact.topic == attribute and fact.value.name("en") == first.value.name("en") and fact.about != first.about
    ]
    if not others:
        return [], []
    second = teller.rng.choice(others)
    names = {"a": first.slots[teller.language]["country"], "b": second.slots[teller.language]["country"]}
    template = teller.rng.choice(teller.wordings.both[attribute])
    sentence = fill(
        template,
        {**first.value.slots[teller.language], **names},
        subject_is_masculine=first.subject_is_masculine,
        value_is_masculine=True,
    )
    return [sentence], [first, second]


def dialogue(teller: Teller) -> Text:
    """Two people: one asks, the other knows."""
    rng, wordings = teller.rng, teller.wordings
    a, b = rng.sample(wordings.names, 2)
    told = teller.told.draw_some(rng.randint(2, 3))
    facts = [*told, *(teller.everyday() for _ in range(rng.choice((0, 1))))]
    lines = [f"{a}: {rng.choice(wordings.dialogue_openings).format(a=a, b=b)}"]
    for fact in facts:
        topic = teller.topic(fact)
        lines += [f"{a}: {teller.pick(topic.quiz, fact)}", f"{b}: {teller.pick(topic.answers, fact)}"]
    lines.append(f"{a}: {rng.choice(wordings.thanks).format(b=b)}")
    return Text("\n".join(lines), tuple(told))


def lesson(teller: Teller) -> Text:
    """Say several things of everyday life: one subject, or all mixed."""
    rng = teller.rng
    deck = teller.by_subject[rng.choice(tuple(teller.by_subject))]
    draw = deck.draw if rng.random() < 0.6 else teller.everyday
    facts = [draw() for _ in range(rng.randint(5, 9))]
    sentences = [teller.pick(teller.topic(fact).statements, fact) for fact in facts]
    # An equation ends without a full stop, so it needs a line of its own.
    may_run_on = all(sentence.endswith(".") for sentence in sentences)
    return Text((" " if may_run_on and rng.random() < 0.5 else "\n").join(sentences))


def family(teller: Teller) -> Text:
    """List things of one family, and find the one that does not belong."""
    rng, wordings = teller.rng, teller.wordings
    chosen = rng.choice(tuple(FAMILIES.values()))
    things = [_thing(teller, noun) for noun in rng.sample(chosen.nouns, 4)]
    stranger = rng.choice([other for other in FAMILIES.values() if not clash(other.key, chosen.key)])
    odd = _thing(teller, rng.choice(stranger.nouns))
    name = Word(chosen.en_plural, chosen.ar_plural, chosen.ary_plural).spoken(teller.language)
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


def _thing(teller: Teller, noun: Noun) -> str:
    return Word(thing_en(noun), definite(noun.ar), definite(noun.ary)).spoken(teller.language)


def sequence(teller: Teller) -> Text:
    """Recite the days, the months or the seasons."""
    wordings, kind = teller.wordings, teller.rng.choice(tuple(_SEQUENCES))
    words = [word.spoken(teller.language) for word in _SEQUENCES[kind]]
    joined = join_words(words, wordings)
    text = teller.rng.choice(wordings.sequences).format(kind=wordings.sequence_kinds[kind], words=joined)
    more = lesson(teller).text
    return Text(f"{capitalise(text)} {more}")


def story(teller: Teller) -> Text:
    """Tell word problems in which things are counted."""
    return Text(" ".join(_problem(teller) for _ in range(teller.rng.randint(2, 4))))


def _problem(teller: Teller) -> str:
    rng, wordings = teller.rng, teller.wordings
    nouns = [noun for key in _COUNTED_FAMILIES for noun in FAMILIES[key].nouns if noun.ar_plural and noun.en_plural]
    noun, first, second = rng.choice(nouns), rng.randint(2, 12), rng.randint(2, 12)
    place = rng.randrange(len(wordings.names))
    slots = {
        "name": wordings.names[place],
        "first": _count(teller.language, first, noun),
        "second": _count(teller.language, second, noun),
        "total": _count(teller.language, first + second, noun),
        "first_accusative": _count(teller.language, first, noun, Case.accusative),
        "second_accusative": _count(teller.language, second, noun, Case.accusative),
    }
    # The names stand in turn: a woman's, a man's.
    return fill(rng.choice(wordings.stories), slots, subject_is_masculine=place % 2 == 1, value_is_masculine=True)


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
