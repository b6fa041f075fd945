"""Tables of sentences that mean the same in English, Arabic and Darija.

`TRANSLATIONS` has sentences per topic, the first being the first answer of each language, so that a conversation can
translate its last answer. `GLOSSARY` has sentences that name one thing and state nothing about it.
"""

from lisan.microworld.almanac import Word

TRANSLATIONS: dict[str, tuple[Word, ...]] = {
    "capital": (
        Word(
            "The capital of {country} is {value}.", "عاصمة {country} هي {value}.", "العاصمة ديال {country} هي {value}."
        ),
        Word(
            "{value} is the capital of {country}.", "{value} هي عاصمة {country}.", "{value} هي العاصمة ديال {country}."
        ),
        Word(
            "In {country}, the capital is {value}.",
            "العاصمة في {country} هي {value}.",
            "ف {country} العاصمة هي {value}.",
        ),
    ),
    "currency": (
        Word(
            "The currency of {country} is {value}.", "عملة {country} هي {value}.", "العملة ديال {country} هي {value}."
        ),
        Word(
            "People in {country} pay with {value}.",
            "يدفع الناس في {country} {by_value}.",
            "الناس ف {country} كيخلصو {by_value}.",
        ),
        Word(
            "{country} uses {value} as its currency.",
            "[يستعمل|تستعمل] {country} {value} عملة [له|لها].",
            "ف {country} كيخدمو {by_value}.",
        ),
    ),
    "continent": (
        Word("{country} is in {value}.", "[يقع|تقع] {country} في {value}.", "{country} [كاين|كاينة] ف {value}."),
        Word("{country} is a country in {value}.", "{country} بلد في {value}.", "{country} بلاد ف {value}."),
        Word(
            "The continent of {country} is {value}.", "قارة {country} هي {value}.", "القارة ديال {country} هي {value}."
        ),
    ),
    "language": (
        Word(
            "The main language of {country} is {value}.",
            "اللغة الرئيسية في {country} هي {value}.",
            "اللغة ديال {country} هي {value}.",
        ),
        Word(
            "People in {country} speak {value}.",
            "يتحدث سكان {country} {value}.",
            "الناس ف {country} كيهضرو {by_value}.",
        ),
        Word(
            "In {country}, people speak {value}.", "في {country} يتكلم الناس {value}.", "ف {country} كيهضرو {by_value}."
        ),
    ),
    "neighbour": (
        Word(
            "{value} is a neighbour of {country}.", "{value} من جيران {country}.", "{value} من الجيران ديال {country}."
        ),
        Word(
            "{country} has a border with {value}.",
            "{to_country} حدود مع {value}.",
            "{country} [عندو|عندها] الحدود مع {value}.",
        ),
        Word(
            "{country} and {value} are neighbours.", "{country} و{value} بلدان متجاوران.", "{country} و {value} جيران."
        ),
    ),
    "arithmetic": (
        Word("{a} {op} {b} is {value}.", "{a} {op} {b} يساوي {value_accusative}.", "{a} {op} {b} هي {value}."),
        Word(
            "The result of {a} {op} {b} is {value}.",
            "حاصل {a_genitive} {op} {b} هو {value}.",
            "النتيجة ديال {a} {op} {b} هي {value}.",
        ),
    ),
    "numeral": (
        Word("{digits} is {value}.", "العدد {digits} هو {value}.", "{digits} بالحروف هي {value}."),
        Word(
            "The number {digits} is written {value}.",
            "يكتب العدد {digits} بالحروف: {value}.",
            "الرقم {digits} كيتكتب {value}.",
        ),
    ),
    "after": (
        Word("{value} comes after {a}.", "بعد {a} يأتي {value}.", "من بعد {a} كيجي {value}."),
        Word(
            "The {kind} after {a} is {value}.",
            "{the_kind} الذي بعد {a} هو {value}.",
            "{the_kind} اللي من بعد {a} هو {value}.",
        ),
    ),
    "before": (
        Word("{value} comes before {a}.", "قبل {a} يأتي {value}.", "قبل {a} كيجي {value}."),
        Word(
            "The {kind} before {a} is {value}.",
            "{the_kind} الذي قبل {a} هو {value}.",
            "{the_kind} اللي قبل {a} هو {value}.",
        ),
    ),
    "month_number": (
        Word(
            "The {ordinal} month of the year is {value}.",
            "الشهر {ordinal} في السنة هو {value}.",
            "الشهر {ordinal} ف العام هو {value}.",
        ),
        Word("{value} is month number {digits}.", "{value} هو الشهر رقم {digits}.", "{value} هو الشهر رقم {digits}."),
    ),
    "unit": (
        Word("There are {count} in {large}.", "في {large} {count}.", "ف {large} كاين {count}."),
        Word("{large} has {count}.", "{large} [فيه|فيها] {count}.", "ف {large} عندنا {count}."),
    ),
    "family": (
        Word("{thing} is one of the {family_plural}.", "{thing} من {family_plural}.", "{thing} من {family_plural}."),
        Word(
            "{thing} belongs to the {family_plural}.",
            "[ينتمي|تنتمي] {thing} إلى {family_plural}.",
            "كنحسبو {thing} من {family_plural}.",
        ),
    ),
}

GLOSSARY: dict[str, tuple[Word, ...]] = {
    "country": (
        Word(
            "{name} travels to {word}.", "[يسافر|تسافر] {name} إلى {word}.", "{name} [غادي يسافر|غادي تسافر] {to_word}."
        ),
        Word("{name} comes from {word}.", "[يأتي|تأتي] {name} من {word}.", "{name} [جا|جات] من {word}."),
        Word(
            "{name} reads a book about {word}.",
            "[يقرأ|تقرأ] {name} كتابا عن {word}.",
            "{name} [كيقرا|كتقرا] كتاب على {word}.",
        ),
    ),
    "capital": (
        Word("{name} lives in {word}.", "[يعيش|تعيش] {name} في {word}.", "{name} [ساكن|ساكنة] ف {word}."),
        Word(
            "{name} wants to see {word}.",
            "[يريد|تريد] {name} أن [يرى|ترى] {word}.",
            "{name} [بغا يشوف|بغات تشوف] {word}.",
        ),
        Word("{name} is in {word} today.", "{name} اليوم في {word}.", "{name} اليوم ف {word}."),
    ),
    "currency": (
        Word("{name} pays with {word}.", "[يدفع|تدفع] {name} {by_word}.", "{name} [كيخلص|كتخلص] {by_word}."),
        Word("{name} asks about {word}.", "[يسأل|تسأل] {name} عن {word}.", "{name} [كيسول|كتسول] على {word}."),
    ),
    "language": (
        Word("{name} speaks {word}.", "[يتحدث|تتحدث] {name} {word}.", "{name} [كيهضر|كتهضر] {by_word}."),
        Word("{name} learns {word}.", "[يتعلم|تتعلم] {name} {word}.", "{name} [كيتعلم|كتتعلم] {word}."),
        Word(
            "{name} reads a text in {word}.",
            "[يقرأ|تقرأ] {name} نصا {by_word}.",
            "{name} [كيقرا|كتقرا] شي نص {by_word}.",
        ),
    ),
    "continent": (
        Word(
            "{name} travels to {word}.", "[يسافر|تسافر] {name} إلى {word}.", "{name} [غادي يسافر|غادي تسافر] {to_word}."
        ),
        Word(
            "{name} draws a map of {word}.",
            "[يرسم|ترسم] {name} خريطة {word}.",
            "{name} [كيرسم|كترسم] الخريطة ديال {word}.",
        ),
    ),
}
