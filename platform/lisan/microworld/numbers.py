"""Number words and counted nouns in English, Arabic and Darija, for integers from 0 to 100, and 1000.

Arabic rules of the counted noun: 1 and 2 are the noun itself, 3-10 take the plural in the genitive and a numeral of the
opposite gender, 11-99 the singular in the accusative, 100 and 1000 the singular in the genitive.
"""

from dataclasses import dataclass
from enum import StrEnum

from lisan.core.errors import DataError


class Case(StrEnum):
    """Arabic case as far as spelling without vowel marks shows it."""

    nominative = "nominative"
    accusative = "accusative"
    genitive = "genitive"


_EN_UNITS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
)
_EN_TENS = (
    "-",
    "-",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
)

_AR_UNITS = (
    "صفر",
    "واحد",
    "اثنان",
    "ثلاثة",
    "أربعة",
    "خمسة",
    "ستة",
    "سبعة",
    "ثمانية",
    "تسعة",
    "عشرة",
)
_AR_TENS = (
    "-",
    "عشرة",
    "عشر",
    "ثلاث",
    "أربع",
    "خمس",
    "ست",
    "سبع",
    "ثمان",
    "تسع",
)

_UNINFLECTED = {100: "مئة", 1000: "ألف"}

_ARY_UNITS = (
    "صفر",
    "واحد",
    "جوج",
    "تلاتة",
    "ربعة",
    "خمسة",
    "ستة",
    "سبعة",
    "تمنية",
    "تسعود",
    "عشرة",
    "حداش",
    "طناش",
    "تلطاش",
    "ربعطاش",
    "خمسطاش",
    "سطاش",
    "سبعطاش",
    "تمنطاش",
    "تسعطاش",
)
_ARY_TENS = (
    "-",
    "-",
    "عشرين",
    "تلاتين",
    "ربعين",
    "خمسين",
    "ستين",
    "سبعين",
    "تمانين",
    "تسعين",
)


@dataclass(frozen=True, slots=True)
class Counted:
    """An Arabic noun with the forms that counting needs."""

    singular: str
    plural: str
    is_masculine: bool


def en_number(number: int) -> str:
    """41 -> forty-one."""
    _check(number)
    if number >= 100:
        return "one hundred" if number == 100 else "one thousand"
    if number < 20:
        return _EN_UNITS[number]
    tens, unit = divmod(number, 10)
    return _EN_TENS[tens] + (f"-{_EN_UNITS[unit]}" if unit else "")


def ar_number(number: int, case: Case = Case.nominative) -> str:
    """41 -> واحد وأربعون, the abstract number (the form with ة); after `يساوي` the accusative واحدا وأربعين."""
    return ar_numeral(number, is_masculine=True, case=case)


def ar_numeral(number: int, *, is_masculine: bool, case: Case = Case.nominative) -> str:
    """Return the numeral that goes with a noun of that gender: 3 is ثلاثة for كتاب and ثلاث for سيارة."""
    _check(number)
    if number >= 100:
        return _alone(_UNINFLECTED[number], case)
    if number <= 10:
        return _alone(_ar_unit(number, is_masculine, case), case)
    tens, unit = divmod(number, 10)
    if tens == 1:
        return _ar_teen(unit, is_masculine, case)
    ten = _AR_TENS[tens] + ("ون" if case is Case.nominative else "ين")
    if not unit:
        return ten
    if unit == 1 and not is_masculine:
        return f"إحدى و{ten}"
    word = _ar_unit(unit, is_masculine, case)
    if word == "ثماني" and case is not Case.accusative:
        # A defective noun: ثمانٍ وعشرون, but ثماني before its noun and ثمانيا in the accusative.
        word = "ثمان"
    return f"{_alone(word, case)} و{ten}"


def _alone(word: str, case: Case) -> str:
    """Spell a numeral that no noun follows in the genitive: the accusative of ثلاث is ثلاثا, of واحد is واحدا."""
    is_dual = word.startswith("اثن")
    return ar_accusative(word) if case is Case.accusative and not is_dual else word


def _ar_unit(unit: int, is_masculine: bool, case: Case) -> str:
    if unit == 0:
        return "صفر"
    if unit == 1:
        return "واحد" if is_masculine else "واحدة"
    if unit == 2:
        stem = "اثن" if is_masculine else "اثنت"
        return stem + ("ان" if case is Case.nominative else "ين")
    word = _AR_UNITS[unit]
    if is_masculine:
        return word
    return "ثماني" if unit == 8 else word.removesuffix("ة")


def _ar_teen(unit: int, is_masculine: bool, case: Case) -> str:
    ten = "عشر" if is_masculine else "عشرة"
    if unit == 1:
        return f"{'أحد' if is_masculine else 'إحدى'} {ten}"
    if unit == 2:
        stem = "اثن" if is_masculine else "اثنت"
        return f"{stem}{'ا' if case is Case.nominative else 'ي'} {ten}"
    return f"{_ar_unit(unit, is_masculine, case)} {ten}"


def ary_number(number: int) -> str:
    """41 -> واحد وربعين; the 2 of 22 is تنين, not جوج."""
    _check(number)
    if number >= 100:
        return "مية" if number == 100 else "ألف"
    if number < 20:
        return _ARY_UNITS[number]
    tens, unit = divmod(number, 10)
    if not unit:
        return _ARY_TENS[tens]
    return f"{'تنين' if unit == 2 else _ARY_UNITS[unit]} و{_ARY_TENS[tens]}"


def count_en(number: int, singular: str, plural: str) -> str:
    """3, book -> three books."""
    return f"{en_number(number)} {singular if number == 1 else plural}"


def count_ar(number: int, noun: Counted, case: Case = Case.nominative) -> str:
    """Count in Arabic: كتاب واحد, كتابان, ثلاثة كتب, أحد عشر كتابا, مئة كتاب."""
    numeral = ar_numeral(number, is_masculine=noun.is_masculine, case=case)
    if number == 1:
        return f"{_alone(noun.singular, case)} {numeral}"
    if number == 2:
        return ar_dual(noun.singular, case)
    if 3 <= number <= 10:
        return f"{_ar_unit(number, noun.is_masculine, case)} {noun.plural}"
    if number >= 100:
        return f"{_UNINFLECTED[number]} {noun.singular}"
    return f"{numeral} {ar_accusative(noun.singular)}"


def ar_dual(singular: str, case: Case = Case.nominative) -> str:
    """كتاب -> كتابان, سيارة -> سيارتان, مرآة -> مرآتان."""
    stem = singular.removesuffix("ة") + "ت" if singular.endswith("ة") else singular
    return stem + ("ان" if case is Case.nominative else "ين")


def ar_accusative(singular: str) -> str:
    """Write the indefinite accusative: كتاب -> كتابًا; after ة and after a final اء no alif is written."""
    return singular if singular.endswith(("ة", "اء")) else f"{singular}ا"


def count_ary(number: int, singular: str, plural: str) -> str:
    """Count two or more in Darija: جوج ديال الكتوبة, طناشر كتاب, عشرين كتاب."""
    if number <= 10:
        return f"{ary_number(number)} ديال {definite(plural)}"
    # حداش..تسعطاش end in ر before a counted noun: طناشر كتاب.
    return f"{ary_number(number)}{'ر' if 11 <= number <= 19 else ''} {singular}"


def definite(noun: str) -> str:
    """Put the article before a noun, or before the second half of a pair: حبة طماطم -> حبة الطماطم."""
    first, space, second = noun.partition(" ")
    return f"{first} ال{second}" if space else f"ال{noun}"


def _check(number: int) -> None:
    if not 0 <= number <= 100 and number != 1000:
        raise DataError(f"number must be 0 to 100, or 1000, got {number}; the micro-world has words for no other")
