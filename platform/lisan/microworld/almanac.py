"""Tables of the calendar and of units, in their natural order. Arabic days and seasons carry their article."""

from dataclasses import dataclass
from typing import NamedTuple

from lisan.microworld.numbers import Counted


class Word(NamedTuple):
    """One word in the three languages."""

    en: str
    ar: str
    ary: str

    def in_language(self, language: str) -> str:
        """Return the word in one of the languages."""
        return self[self._fields.index(language)]


@dataclass(frozen=True, slots=True)
class Unit:
    """`number` of the small unit make one large unit."""

    large: Word
    large_is_masculine: bool
    number: int
    small_en: tuple[str, str]
    small_ar: Counted
    small_ary: tuple[str, str]


def _words(table: str) -> tuple[Word, ...]:
    return tuple(Word(*line.split("|")) for line in table.strip().splitlines())


DAYS = _words("""
Monday|الاثنين|الاتنين
Tuesday|الثلاثاء|التلات
Wednesday|الأربعاء|الأربع
Thursday|الخميس|الخميس
Friday|الجمعة|الجمعة
Saturday|السبت|السبت
Sunday|الأحد|الحد
""")

MONTHS = _words("""
January|يناير|يناير
February|فبراير|فبراير
March|مارس|مارس
April|أبريل|أبريل
May|مايو|ماي
June|يونيو|يونيو
July|يوليو|يوليوز
August|أغسطس|غشت
September|سبتمبر|شتنبر
October|أكتوبر|أكتوبر
November|نوفمبر|نونبر
December|ديسمبر|دجنبر
""")

SEASONS = _words("""
spring|الربيع|الربيع
summer|الصيف|الصيف
autumn|الخريف|الخريف
winter|الشتاء|الشتا
""")

ORDINALS = _words("""
first|الأول|اللول
second|الثاني|التاني
third|الثالث|التالت
fourth|الرابع|الرابع
fifth|الخامس|الخامس
sixth|السادس|السادس
seventh|السابع|السابع
eighth|الثامن|التامن
ninth|التاسع|التاسع
tenth|العاشر|العاشر
eleventh|الحادي عشر|الحداش
twelfth|الثاني عشر|الطناش
""")
"Masculine, as day and month are."

# large|large in Arabic|gender|large in Darija|number|small|plural|Arabic|gender|plural|Darija|plural
_UNITS = """
a minute|دقيقة|f|دقيقة|60|second|seconds|ثانية|f|ثواني|تانية|تواني
an hour|ساعة|f|ساعة|60|minute|minutes|دقيقة|f|دقائق|دقيقة|دقايق
a quarter of an hour|ربع ساعة|m|ربع ساعة|15|minute|minutes|دقيقة|f|دقائق|دقيقة|دقايق
half an hour|نصف ساعة|m|نص ساعة|30|minute|minutes|دقيقة|f|دقائق|دقيقة|دقايق
a day|يوم|m|نهار|24|hour|hours|ساعة|f|ساعات|ساعة|سوايع
a week|أسبوع|m|سيمانة|7|day|days|يوم|m|أيام|يوم|أيام
a year|سنة|f|عام|12|month|months|شهر|m|أشهر|شهر|شهور
a decade|عقد|m|عقد|10|year|years|سنة|f|سنوات|عام|سنين
a century|قرن|m|قرن|100|year|years|سنة|f|سنوات|عام|سنين
a metre|متر|m|ميترو|100|centimetre|centimetres|سنتيمتر|m|سنتيمترات|سنتيم|سنتيمات
a centimetre|سنتيمتر|m|سنتيم|10|millimetre|millimetres|مليمتر|m|مليمترات|ميليمتر|ميليمترات
a kilometre|كيلومتر|m|كيلوميتر|1000|metre|metres|متر|m|أمتار|ميترو|ميتروات
a kilogram|كيلوغرام|m|كيلو|1000|gram|grams|غرام|m|غرامات|كرام|كرامات
a tonne|طن|m|طن|1000|kilogram|kilograms|كيلوغرام|m|كيلوغرامات|كيلو|كيلوات
a litre|لتر|m|ليترو|1000|millilitre|millilitres|مليلتر|m|مليلترات|ميليلتر|ميليلترات
a dozen|دزينة|f|طزينة|12|piece|pieces|قطعة|f|قطع|حبة|حبات
"""


def _unit(line: str) -> Unit:
    en, ar, gender, ary, number, *small = line.split("|")
    small_en, smalls_en, small_ar, small_gender, smalls_ar, small_ary, smalls_ary = small
    return Unit(
        Word(en, ar, ary),
        gender == "m",
        int(number),
        (small_en, smalls_en),
        Counted(small_ar, smalls_ar, small_gender == "m"),
        (small_ary, smalls_ary),
    )


UNITS = tuple(map(_unit, _UNITS.strip().splitlines()))
