"""Facts of everyday life: arithmetic, number words, the calendar, units and families of things.

All are stated in both languages; wrong values are close to the right one.
"""

from collections.abc import Iterator

from lisan.microworld.almanac import DAYS, MONTHS, ORDINALS, SEASONS, UNITS, Unit, Word
from lisan.microworld.facts import Fact, FactLanguages, Slots, Value, different, per_language, with_article
from lisan.microworld.families import FAMILIES, Family, Noun
from lisan.microworld.numbers import (
    Case,
    ar_accusative,
    ar_number,
    ary_number,
    count_ar,
    count_ary,
    count_en,
    definite,
    en_number,
)

_OPERATIONS = {
    "addition": ("+", Word("plus", "زائد", "زائد")),
    "subtraction": ("-", Word("minus", "ناقص", "ناقص")),
    "multiplication": ("×", Word("times", "في", "مضروبة ف")),
}
_KINDS = {
    "day": Word("day", "يوم", "نهار"),
    "month": Word("month", "شهر", "شهر"),
    "season": Word("season", "فصل", "فصل"),
}
_CYCLES = {"day": DAYS, "month": MONTHS, "season": SEASONS}
_CLASHES = (
    {"tool", "kitchen", "school", "furniture"},
    {"fruit", "vegetable", "food", "animal"},
    {"clothing", "school"},
)
"Families of which one thing may belong to two: a knife, a fish, a bag."


def everyday_facts() -> tuple[Fact, ...]:
    return (*_arithmetic(), *_numerals(), *_calendar(), *_months(), *map(_unit, UNITS), *_families())


def _arithmetic() -> Iterator[Fact]:
    for a in range(13):
        for b in range(13):
            yield _operation("addition", a, b, a + b)
            yield _operation("subtraction", a + b, b, a)
    for a in range(2, 11):
        for b in range(2, 11):
            yield _operation("multiplication", a, b, a * b)
    for a in range(20, 90, 10):
        for b in range(10, 101 - a, 10):
            yield _operation("addition", a, b, a + b)


def _operation(name: str, a: int, b: int, result: int) -> Fact:
    sign, word = _OPERATIONS[name]
    digits = {"sign": sign, "digits_a": str(a), "digits_b": str(b)}
    return Fact(
        key=f"{name}.{a}-{b}",
        topic="arithmetic",
        subject=name,
        told_in=FactLanguages.both,
        slots=per_language(
            {**digits, "op": word.en, "a": en_number(a), "b": en_number(b)},
            {
                **digits,
                "op": word.ar,
                "a": ar_number(a),
                "a_accusative": ar_number(a, Case.accusative),
                "a_genitive": ar_number(a, Case.genitive),
                "b": ar_number(b, Case.genitive),
            },
            {**digits, "op": word.ary, "a": ary_number(a), "b": ary_number(b)},
        ),
        value=_number(result),
        distractors=tuple(map(_number, _near(result))),
    )


def _near(number: int) -> list[int]:
    return [near for step in (1, 2, 3, 10) for near in (number - step, number + step) if 0 <= near <= 100]


def _number(number: int) -> Value:
    digits = str(number)
    return Value(
        per_language(
            {"value": en_number(number), "digits_value": digits},
            {
                "value": ar_number(number),
                "value_accusative": ar_number(number, Case.accusative),
                "digits_value": digits,
            },
            {"value": ary_number(number), "digits_value": digits},
        )
    )


def _numerals() -> Iterator[Fact]:
    for number in range(101):
        slots = {"digits": str(number)}
        yield Fact(
            key=f"numeral.{number}",
            topic="numeral",
            subject="numeral",
            told_in=FactLanguages.both,
            slots=per_language(slots, slots, slots),
            value=_number(number),
            distractors=tuple(map(_number, _near(number))),
        )


def _calendar() -> Iterator[Fact]:
    for kind, words in _CYCLES.items():
        for index, word in enumerate(words):
            yield _step("after", kind, word, words[(index + 1) % len(words)], words)
            yield _step("before", kind, word, words[index - 1], words)


def _step(topic: str, kind: str, word: Word, value: Word, words: tuple[Word, ...]) -> Fact:
    others = [other for other in words if other not in (word, value)]
    # Only four seasons: the one asked about completes the wrong choices.
    wrong = others if len(others) > 2 else [*others, word]
    return Fact(
        key=f"{topic}.{word.en}",
        topic=topic,
        subject=topic,
        told_in=FactLanguages.both,
        slots=per_language(*(_step_slots(word, kind, index) for index in range(3))),
        value=_word(_named(value, kind)),
        distractors=tuple(_word(_named(other, kind)) for other in wrong),
    )


def _step_slots(word: Word, kind: str, index: int) -> Slots:
    name = _KINDS[kind][index]
    return {"a": _named(word, kind)[index], "kind": name, "the_kind": name if index == 0 else definite(name)}


def _named(word: Word, kind: str) -> Word:
    """Say يوم الجمعة for a day: الجمعة alone is feminine, the other days are not."""
    if kind != "day":
        return word
    return Word(word.en, *(f"{_KINDS[kind][index]} {word[index]}" for index in (1, 2)))


def _word(word: Word) -> Value:
    return Value(per_language({"value": word.en}, {"value": word.ar}, {"value": word.ary}))


def _months() -> Iterator[Fact]:
    for index, (month, ordinal) in enumerate(zip(MONTHS, ORDINALS, strict=True)):
        digits = str(index + 1)
        yield Fact(
            key=f"month_number.{index + 1}",
            topic="month_number",
            subject="month_number",
            told_in=FactLanguages.both,
            slots=per_language(*({"ordinal": name, "digits": digits} for name in ordinal)),
            value=_word(month),
            distractors=tuple(_word(other) for other in MONTHS if other != month),
        )


def _unit(unit: Unit) -> Fact:
    numbers = sorted({other.number for other in UNITS} - {unit.number})
    small = unit.small_ar
    return Fact(
        key=f"unit.{unit.large.en.replace(' ', '_')}",
        topic="unit",
        subject="unit",
        told_in=FactLanguages.both,
        slots=per_language(
            {"large": unit.large.en, "smalls": unit.small_en[1]},
            {
                "large": definite(unit.large.ar),
                "small": ar_accusative(small.singular),
                "the_smalls": definite(small.plural),
            },
            {"large": definite(unit.large.ary), "small": unit.small_ary[0]},
        ),
        value=_amount(unit, unit.number),
        distractors=tuple(_amount(unit, number) for number in numbers),
        subject_is_masculine=unit.large_is_masculine,
    )


def _amount(unit: Unit, number: int) -> Value:
    return Value(
        per_language(
            {"value": en_number(number), "count": count_en(number, *unit.small_en)},
            {
                "value": ar_number(number),
                "count": count_ar(number, unit.small_ar),
                "count_accusative": count_ar(number, unit.small_ar, Case.accusative),
                "count_genitive": count_ar(number, unit.small_ar, Case.genitive),
            },
            {"value": ary_number(number), "count": count_ary(number, *unit.small_ary)},
        )
    )


def clash(first: str, second: str) -> bool:
    """Tell whether a thing could belong to both families."""
    return first == second or any({first, second} <= group for group in _CLASHES)


def _families() -> Iterator[Fact]:
    for family in FAMILIES.values():
        others = [_family_value(other) for other in FAMILIES.values() if not clash(family.key, other.key)]
        for noun in family.nouns:
            yield _member(noun, family, different(_family_value(family), others))


def _member(noun: Noun, family: Family, distractors: tuple[Value, ...]) -> Fact:
    return Fact(
        key=f"family.{noun.en.replace(' ', '_')}",
        topic="family",
        subject="family",
        told_in=FactLanguages.both,
        slots=per_language(
            {"thing": thing_en(noun)},
            {"thing": definite(noun.ar)},
            {"thing": definite(noun.ary)},
        ),
        value=_family_value(family),
        distractors=distractors,
        subject_is_masculine=noun.is_masculine,
    )


def thing_en(noun: Noun) -> str:
    """`a hammer`, but `bread` and `red`."""
    return with_article(noun.en) if noun.en_plural else noun.en


def _family_value(family: Family) -> Value:
    singular = with_article(family.en)
    return Value(
        per_language(
            {"value": singular, "family_plural": family.en_plural},
            {"value": family.ar_plural, "family_plural": family.ar_plural},
            {"value": family.ary_plural, "family_plural": family.ary_plural},
        )
    )
