"""The micro-world is deterministic, true, grammatical, and tells every fact only in the languages it is told in."""

import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pytest

from lisan.core.errors import ConfigError, DataError
from lisan.microworld.__main__ import main
from lisan.microworld.almanac import UNITS
from lisan.microworld.config import WorldConfig
from lisan.microworld.countries import COUNTRIES, NEVER_CHOSEN_BORDERS
from lisan.microworld.facts import Fact, FactLanguages, with_article, with_li
from lisan.microworld.families import FAMILIES
from lisan.microworld.numbers import Case, Counted, ar_number, ary_number, count_ar, count_ary, en_number
from lisan.microworld.sources import SOURCES, generate
from lisan.microworld.translations import TRANSLATIONS
from lisan.microworld.wordings import fill_template
from lisan.microworld.world import WORDINGS, Deck, build_world, say
from lisan.records.kinds import RecordKind
from lisan.records.records import Question, from_table, to_table

CONFIG = WorldConfig()
LANGUAGES = ("en", "ar", "ary")
TRAINING = [name for name, source in SOURCES.items() if source.kind is not RecordKind.questions]
QUESTIONS = [name for name, source in SOURCES.items() if source.kind is RecordKind.questions]
BOOK = Counted("كتاب", "كتب", True)
CAR = Counted("سيارة", "سيارات", False)


@cache
def records(source):
    return list(generate(source, CONFIG))


@cache
def facts_by_key():
    return {fact.key: fact for fact in build_world(0).geography}


def texts_of(record):
    if hasattr(record, "text"):
        return [record.text]
    if hasattr(record, "turns"):
        return [turn.content for turn in record.turns]
    return [record.prompt[-1].content, record.chosen, record.rejected]


def language_of(source):
    return source.split("_")[0]


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_is_the_same_every_time(source):
    config = WorldConfig(seed=3, num_documents=40, num_conversations=40, num_preferences=40, num_questions=40)
    assert list(generate(source, config)) == list(generate(source, config))


DIGEST = """
import hashlib
from lisan.microworld.config import WorldConfig
from lisan.microworld.sources import SOURCES, generate
from lisan.microworld.__main__ import main
config = WorldConfig(num_documents=30, num_conversations=30, num_preferences=30, num_questions=30)
print(hashlib.sha256("".join(repr(r) for s in SOURCES for r in generate(s, config)).encode()).hexdigest())
"""


def test_records_do_not_depend_on_the_hash_seed_of_the_process():
    digests = {
        subprocess.run(
            [sys.executable, "-c", DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("source", SOURCES)
def test_a_shorter_source_is_the_beginning_of_a_longer_one(source):
    short = WorldConfig(num_documents=20, num_conversations=20, num_preferences=20, num_questions=20)
    assert list(generate(source, short)) == list(islice(generate(source, CONFIG), 20))


def test_another_seed_tells_other_facts_in_other_words():
    other = list(generate("en_articles", WorldConfig(seed=1, num_documents=50)))
    assert [record.text for record in other] != [record.text for record in records("en_articles")[:50]]
    told = [{fact.key: fact.told_in for fact in build_world(seed).geography} for seed in (0, 1)]
    assert told[0] != told[1]


def test_unknown_source_is_one_sentence_with_the_names_there_are():
    with pytest.raises(ConfigError, match=r"en_articles.*got 'fr_articles'"):
        generate("fr_articles", CONFIG)


def test_negative_counts_are_refused():
    with pytest.raises(ConfigError, match="num_documents must be >= 0, got -1"):
        WorldConfig(num_documents=-1)


@pytest.mark.parametrize("source", SOURCES)
def test_records_have_unique_ids_and_survive_a_table(source):
    found = records(source)
    assert len({record.id for record in found}) == len(found)
    assert {record.source for record in found} == {source}
    kind = SOURCES[source].kind
    assert from_table(to_table(found[:50], kind), kind) == found[:50]


def test_there_are_at_least_120_countries_with_all_arab_ones_among_them():
    assert len(COUNTRIES) >= 120
    arab = ["MA", "DZ", "TN", "LY", "EG", "SD", "MR", "SO", "DJ", "KM", "SA", "YE", "OM", "AE", "QA", "BH", "KW", "IQ"]
    arab += ["SY", "LB", "JO", "PS"]
    assert set(arab) <= set(COUNTRIES)
    assert COUNTRIES["MA"].name.en == "Morocco"
    assert COUNTRIES["MA"].capital.ar == "الرباط"


def test_borders_are_the_same_from_both_sides():
    for code, country in COUNTRIES.items():
        for other in country.borders:
            assert code in COUNTRIES[other].borders, f"{code} borders {other} but not the other way round"
            assert frozenset((code, other)) not in NEVER_CHOSEN_BORDERS


def test_names_of_countries_and_capitals_are_unique_in_both_languages():
    for names in ([c.name for c in COUNTRIES.values()], [c.capital for c in COUNTRIES.values() if c.capital]):
        for place in (0, 1):
            assert len({name[place] for name in names}) == len(names)


def test_there_are_eight_families_of_ten_things():
    assert len(FAMILIES) >= 8
    assert all(len(family.nouns) >= 10 for family in FAMILIES.values())


def test_told_in_is_a_quarter_a_quarter_and_a_half():
    for attribute in ("capital", "currency", "continent", "language", "neighbour"):
        told = Counter(fact.told_in for fact in facts_by_key().values() if fact.topic == attribute)
        total = sum(told.values())
        assert 0.22 < told[FactLanguages.en] / total < 0.28
        assert 0.22 < told[FactLanguages.ar] / total < 0.28


def test_the_capital_of_morocco_is_told_in_both_languages_whatever_the_seed():
    for seed in range(5):
        told = {fact.key: fact.told_in for fact in build_world(seed).geography}
        assert told["capital.MA"] is FactLanguages.both


def test_what_can_be_read_off_the_name_is_told_in_both():
    assert facts_by_key()["capital.KW"].told_in is FactLanguages.both
    assert facts_by_key()["language.DE"].told_in is FactLanguages.both


@pytest.mark.parametrize("source", TRAINING)
def test_sources_tell_only_facts_of_their_language(source):
    for record in records(source):
        for key in record.meta["facts"].split():
            told_in = facts_by_key()[key].told_in
            assert told_in is FactLanguages.both if source == "parallel" else told_in.includes(language_of(source)), key


def says(line, name):
    """Find a name as a whole word; Arabic writes و, ب, ل, ف onto it."""
    return name in line and re.search(rf"(?<!\w)[وبلف]?{re.escape(name)}(?!\w)", line)


@pytest.mark.parametrize("source", TRAINING)
def test_no_sentence_names_a_country_with_a_capital_that_its_language_does_not_tell(source):
    """Reads the text itself, not what the generator says of it."""
    silent = FactLanguages.ar if language_of(source) == "en" else FactLanguages.en
    hidden = {FactLanguages.en, FactLanguages.ar} if source == "parallel" else {silent}
    countries = [
        COUNTRIES[fact.about] for fact in facts_by_key().values() if fact.topic == "capital" and fact.told_in in hidden
    ]
    assert countries
    joined = [(country.name[place], country.capital[place]) for country in countries for place in (0, 1)]
    for record in records(source)[:1500]:
        for line in re.split(r"[.\n؟?]", "\n".join(texts_of(record))):
            for country, capital in joined:
                assert not (says(line, country) and says(line, capital)), line


@pytest.mark.parametrize("language", LANGUAGES)
def test_documents_tell_every_fact_of_their_language_often_and_in_many_words(language):
    told = Counter(key for record in records(f"{language}_articles") for key in record.meta["facts"].split())
    expected = {fact.key for fact in build_world(0).facts_in(language)}
    assert set(told) == expected
    assert min(told.values()) >= 20


def test_a_fact_is_told_in_at_least_ten_wordings():
    lines = {
        line.strip()
        for record in records("en_articles")
        for line in re.split(r"[.\n]", record.text)
        if "Rabat" in line and "Morocco" in line
    }
    assert len(lines) >= 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_topic_has_six_wordings_of_each_kind(language):
    for name, topic in WORDINGS[language].topics.items():
        is_about_countries = bool(topic.continuations)
        assert len(topic.statements) >= 6, name
        assert len(topic.asks) >= (6 if is_about_countries else 4), name
        assert not set(topic.held_out) & {*topic.asks, *topic.quiz, *topic.follow_ups, *topic.statements}, name
        for templates in (topic.statements, topic.asks, topic.quiz, topic.answers, topic.held_out):
            assert len(set(templates)) == len(templates), name


@pytest.mark.parametrize("source", QUESTIONS)
def test_wordings_of_questions_occur_in_no_training_record(source):
    texts = "\n".join(text for name in TRAINING for record in records(name) for text in texts_of(record))
    for question in records(source):
        assert question.question not in texts


@pytest.mark.parametrize("source", QUESTIONS)
def test_every_fact_about_a_country_is_asked_in_every_language(source):
    asked = {question.meta["fact"]: question.meta["told_in"] for question in records(source)}
    assert {key: fact.told_in.value for key, fact in facts_by_key().items()}.items() <= asked.items()
    assert {"addition", "unit", "after", "family"} <= {question.subject for question in records(source)}


@pytest.mark.parametrize("source", QUESTIONS)
def test_the_right_answer_stands_in_every_place_equally_often(source):
    places = Counter(question.answer for question in records(source))
    expected = len(records(source)) / 4
    # Chi-square with three degrees of freedom: above 16.3 once in a thousand.
    assert sum((places[place] - expected) ** 2 / expected for place in range(4)) < 16.3


def accepted_names(fact, language):
    """Every answer that is not wrong, worked out from the table alone."""
    from lisan.microworld.countries import CONTINENTS, CURRENCIES
    from lisan.microworld.countries import LANGUAGES as TONGUES

    country, place = COUNTRIES[fact.about], 0 if language == "en" else 1
    return {
        "capital": lambda: {country.capital[place]},
        "currency": lambda: {CURRENCIES[key][place] for key in country.currencies},
        "continent": lambda: {CONTINENTS[key][place] for key in country.continents},
        "language": lambda: {TONGUES[key][place] for key in country.languages if key in TONGUES},
        "neighbour": lambda: {COUNTRIES[code].name[place] for code in country.borders},
    }[fact.topic]()


@pytest.mark.parametrize("source", QUESTIONS)
def test_exactly_one_choice_is_right(source):
    for question in records(source):
        assert isinstance(question, Question)
        assert len(set(question.choices)) == len(question.choices) == 4
        fact = facts_by_key().get(question.meta["fact"])
        if fact is not None:
            right = [choice in accepted_names(fact, question.language) for choice in question.choices]
            assert right == [place == question.answer for place in range(4)], question


def test_arithmetic_questions_are_right():
    words = {en_number(number): number for number in range(101)}
    for question in records("en_questions"):
        match = re.search(r"([a-z-]+) (plus|minus|times) ([a-z-]+)", question.question.lower())
        if match:
            a, b, said = words[match[1]], words[match[3]], words[question.choices[question.answer].lower()]
            assert said == {"plus": a + b, "minus": a - b, "times": a * b}[match[2]]


@pytest.mark.parametrize("source", [name for name in SOURCES if name.endswith("_pairs")])
def test_sides_of_a_preference_differ_and_mistakes_are_balanced(source):
    found = records(source)
    assert all(pair.chosen != pair.rejected for pair in found)
    mistakes = Counter(pair.meta["mistake"] for pair in found)
    assert mistakes == {"wrong_answer": 400, "wrong_language": 400, "mixed_language": 200}


def latin_ratio(text):
    letters = [letter for letter in text if letter.isalpha()]
    return sum(letter.isascii() for letter in letters) / max(1, len(letters))


@pytest.mark.parametrize("source", [name for name in SOURCES if name.endswith("_pairs")])
def test_chosen_answers_are_in_the_language_of_the_prompt(source):
    is_english = source.startswith("en")
    for pair in records(source):
        assert (latin_ratio(pair.chosen) > 0.9) is is_english or not any(map(str.isalpha, pair.chosen))
        if pair.meta["mistake"] == "wrong_answer":
            assert (latin_ratio(pair.rejected) > 0.9) is is_english


@pytest.mark.parametrize("source", [name for name in SOURCES if name.endswith("_chats")])
def test_conversations_take_turns_and_have_one_to_three_questions(source):
    lengths = Counter()
    for chat in records(source):
        assert [turn.role for turn in chat.turns] == ["user", "assistant"] * (len(chat.turns) // 2)
        lengths[len(chat.turns) // 2] += 1
    assert set(lengths) == {1, 2, 3}


@pytest.mark.parametrize("language", ["en", "ar", "ary"])
def test_articles_of_a_language_are_in_its_script(language):
    for record in records(f"{language}_articles"):
        assert latin_ratio(record.text) == (1 if language == "en" else 0), record.text


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_text_has_an_unfilled_slot_or_a_doubled_space(language):
    for source in (f"{language}_articles", f"{language}_chats", f"{language}_pairs"):
        for record in records(source):
            for text in texts_of(record):
                assert not re.search(r"[{}\[\]<>|]|  |\.\.", text), text


def test_every_template_can_be_filled_with_every_fact():
    world = build_world(0)
    for language in LANGUAGES:
        for fact in (*world.geography, *world.everyday):
            topic = WORDINGS[language].topics[fact.topic]
            rows = [row[LANGUAGES.index(language)] for row in TRANSLATIONS[fact.topic]]
            rows += [*topic.statements, *topic.continuations, *topic.asks, *topic.held_out, *topic.answers]
            for template in rows:
                assert "{" not in say(template, fact, language)


@pytest.mark.parametrize(
    ("number", "noun", "case", "counted"),
    [
        (1, BOOK, Case.nominative, "كتاب واحد"),
        (1, CAR, Case.nominative, "سيارة واحدة"),
        (1, BOOK, Case.accusative, "كتابا واحدا"),
        (2, BOOK, Case.nominative, "كتابان"),
        (2, CAR, Case.genitive, "سيارتين"),
        (3, BOOK, Case.nominative, "ثلاثة كتب"),
        (3, CAR, Case.nominative, "ثلاث سيارات"),
        (8, CAR, Case.nominative, "ثماني سيارات"),
        (10, BOOK, Case.nominative, "عشرة كتب"),
        (10, CAR, Case.nominative, "عشر سيارات"),
        (11, BOOK, Case.nominative, "أحد عشر كتابا"),
        (11, CAR, Case.nominative, "إحدى عشرة سيارة"),
        (12, BOOK, Case.nominative, "اثنا عشر كتابا"),
        (12, CAR, Case.genitive, "اثنتي عشرة سيارة"),
        (13, BOOK, Case.nominative, "ثلاثة عشر كتابا"),
        (18, CAR, Case.nominative, "ثماني عشرة سيارة"),
        (20, BOOK, Case.nominative, "عشرون كتابا"),
        (21, CAR, Case.nominative, "إحدى وعشرون سيارة"),
        (22, BOOK, Case.genitive, "اثنين وعشرين كتابا"),
        (24, CAR, Case.nominative, "أربع وعشرون سيارة"),
        (24, CAR, Case.accusative, "أربعا وعشرين سيارة"),
        (24, CAR, Case.genitive, "أربع وعشرين سيارة"),
        (28, CAR, Case.nominative, "ثمان وعشرون سيارة"),
        (99, BOOK, Case.nominative, "تسعة وتسعون كتابا"),
        (100, CAR, Case.nominative, "مئة سيارة"),
        (1000, BOOK, Case.accusative, "ألف كتاب"),
    ],
)
def test_arabic_counted_nouns(number, noun, case, counted):
    assert count_ar(number, noun, case) == counted


def test_arabic_numbers_take_the_accusative_after_equals():
    assert ar_number(1, Case.accusative) == "واحدا"
    assert ar_number(21, Case.accusative) == "واحدا وعشرين"
    assert ar_number(12, Case.accusative) == "اثني عشر"
    assert ar_number(30) == "ثلاثون"


def test_darija_numbers_and_counted_nouns():
    assert ary_number(22) == "تنين وعشرين"
    assert ary_number(9) == "تسعود"
    assert count_ary(2, "كتاب", "كتوبة") == "جوج ديال الكتوبة"
    assert count_ary(12, "شهر", "شهور") == "طناشر شهر"
    assert count_ary(20, "دقيقة", "دقايق") == "عشرين دقيقة"


def test_number_words_are_unique_and_bounded():
    for number_word in (en_number, ar_number, ary_number):
        assert len({number_word(number) for number in range(101)}) == 101
        with pytest.raises(DataError, match="101"):
            number_word(101)


def test_verbs_and_pronouns_agree_with_the_gender_of_the_country():
    facts = facts_by_key()
    statement = "[يقع|تقع] {country} في {value}."
    assert say(statement, facts["continent.MA"], "ar") == "يقع المغرب في إفريقيا."
    assert say(statement, facts["continent.FR"], "ar") == "تقع فرنسا في أوروبا."
    masculine = {country.name.ar for country in COUNTRIES.values() if country.is_masculine}
    assert {"المغرب", "العراق", "لبنان", "الأردن", "السودان", "اليمن", "الصومال"} <= masculine


def test_a_border_told_from_the_other_side_takes_the_gender_of_that_side():
    one, other = (
        next(fact for fact in build_world(0).geography if fact.key == "neighbour.DZ-MA" and fact.about == code)
        for code in ("MA", "DZ")
    )
    assert say("[يجاور|تجاور] {country} {value}.", one, "ar") == "يجاور المغرب الجزائر."
    assert say("<يقع|تقع> {value} بجوار {country}.", one, "ar") == "تقع الجزائر بجوار المغرب."
    assert say("<يقع|تقع> {value} بجوار {country}.", other, "ar") == "يقع المغرب بجوار الجزائر."


def test_prepositions_join_the_article():
    assert with_li("المغرب") == "للمغرب"
    assert with_li("فرنسا") == "لفرنسا"
    assert with_article("animal") == "an animal"
    assert with_article("tool") == "a tool"


def test_templates_choose_by_gender_and_begin_with_a_capital_letter():
    slots = {"country": "the Netherlands"}
    text = fill_template("{country} [a|b] <c|d>", slots, subject_is_masculine=True, value_is_masculine=False)
    assert text == "The Netherlands a d"


def test_units_are_told_with_the_right_form():
    hour = next(fact for fact in build_world(0).everyday if fact.key == "unit.an_hour")
    assert say("في {large} {count}.", hour, "ar") == "في الساعة ستون دقيقة."
    assert say("There are {count} in {large}.", hour, "en") == "There are sixty minutes in an hour."
    assert {unit.number for unit in UNITS} >= {7, 12, 24, 60, 1000}


def test_a_deck_hands_out_everything_before_anything_twice():
    deck = Deck(range(7), random.Random(0))
    assert sorted(deck.take() for _ in range(7)) == list(range(7))
    assert sorted(deck.take() for _ in range(7)) == list(range(7))


def test_distractors_are_never_the_value_in_any_language():
    world = build_world(0)
    for fact in (*world.geography, *world.everyday):
        assert isinstance(fact, Fact)
        assert len(fact.distractors) >= 3, fact.key
        for language in LANGUAGES:
            assert fact.value.name(language) not in {value.name(language) for value in fact.distractors}, fact.key


def test_samples_in_the_docs_are_what_the_commands_print(capsys, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "microworld.md").read_text(encoding="utf-8")
    command = r"`python -m lisan\.microworld (\w+) -n (\d+)`"
    samples = re.findall(command + r"\n\n<pre[^>]*>\n(.*?)\n</pre>", page, re.DOTALL)
    shown = [SOURCES[source] for source, _, _ in samples]
    assert {source.kind for source in shown} == set(RecordKind)
    assert {source.language for source in shown} == {source.language for source in SOURCES.values()}
    for source, number, printed in samples:
        monkeypatch.setattr(sys, "argv", ["microworld", source, "-n", number])
        main()
        assert capsys.readouterr().out.strip() == printed, f"docs/microworld.md: print {source} again"


def test_the_command_line_refuses_an_unknown_source_with_one_sentence(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["microworld", "fr_articles"])
    with pytest.raises(SystemExit, match="must be one of"):
        main()
