"""Normalises Unicode without loss of meaning (T0), and computes the key for exact duplicates (T2).

`normalise(normalise(x)) == normalise(x)`. Diacritics, hamza forms, digits and Arabic punctuation stay; only the Unicode
spelling changes.
"""

import re
import unicodedata
from collections.abc import Callable

from lisan.corpus.clean.language import MOST, measure_script
from lisan.corpus.clean.scripts import is_arabic, spells_with_joiners

TATWEEL = "ـ"
ARABIC = "\u0620-\u063f\u0641-\u065f\u066e-\u06d3\u06d5-\u06dc\u06df-\u06e8\u06ea-\u06ef\u06fa-\u06ff\u0750-\u077f\u08a0-\u08ff"
"Arabic letters and marks without the tatweel, as the inside of a character class."
_SPACELESS = "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\u1b00-\u1b7f\ua930-\ua95f\ua980-\ua9ff\uaa60-\uaadf"
"Thai, Lao, Tibetan, Myanmar, Khmer, Tai, Balinese and Javanese: scripts without spaces, where U+200B marks the end of a word."

_SUSPECT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\xa0\xad\u061c\u0640\u06a9\u06cc\u1680\u2000-\u200f\u2028-\u202f\u205f\u2066-\u2069\u3000"
    "\ufb50-\ufdf9\ufe70-\ufeff\ud800-\udfff]"
)
_LINE_END = re.compile("\r\n?|[\u2028\u2029]")
_INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]+"
)
_ZERO_WIDTH_SPACE = re.compile(f"(?<![{_SPACELESS}\u200b])\u200b+(?![{_SPACELESS}\u200b])")
_SPACE = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f\u3000]")
_PRESENTATION = re.compile("[\ufb50-\ufdf9\ufe70-\ufefc]")
_JOINER = re.compile(f"([{ARABIC}])[\u200c\u200d]+(?=[{ARABIC}])")
_TATWEEL = re.compile(f"([{ARABIC}]){TATWEEL}+(?=[{ARABIC}])")
_PERSIAN_SPELLING = re.compile("[\u06a9\u06cc\u200c\u200d]")
_PERSIAN_OR_URDU = re.compile("[ژٹڈڑںےۓہۂۃھۀەێۆڵڕ۔]|(?<!\\w)(?:این|است|که|های|می|کے|کی|میں)(?!\\w)")
_BLANK_BEFORE_LINE_END = re.compile("[ \t]+(?=\n|\\Z)")
_EMPTY_LINES = re.compile("\n{3,}")


def normalise(text: str, *labels: str) -> str:
    """Apply T0 to one text; a text that is already regular costs one scan.

    `labels` names the languages of the text: one, or both of a pair. Zero-width joiners and Persian letters stay where one of
    them may be spelt with them, zero-width spaces beside letters of a script without spaces. Isolated marks of the
    presentation blocks become the bare mark and not, as NFKC has it, a space and the mark.
    """
    if _SUSPECT.search(text):
        text = _LINE_END.sub("\n", text)
        text = _INVISIBLE.sub("", text)
        if "\u200b" in text:
            text = _ZERO_WIDTH_SPACE.sub("", text)
        text = _SPACE.sub(" ", text)
        text = _PRESENTATION.sub(lambda match: _unfold(match[0]), text)
        if any(map(is_arabic, labels)) and not any(map(spells_with_joiners, labels)):
            text = _respell_arabic(text)
        if TATWEEL in text:
            text = _TATWEEL.sub(r"\1", text)
    if " \n" in text or "\t\n" in text or text[-1:].isspace():
        text = _BLANK_BEFORE_LINE_END.sub("", text)
    if "\n\n\n" in text:
        text = _EMPTY_LINES.sub("\n\n", text)
    text = text.strip("\n")
    return text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)


def _unfold(letter: str) -> str:
    """NFKC of a presentation form; `\\ufe76` (isolated fatha) gives the mark alone, else it would break its word."""
    text = unicodedata.normalize("NFKC", letter)
    marks = text.strip(f" {TATWEEL}")
    return marks if marks and all(unicodedata.combining(mark) for mark in marks) else text


def _respell_arabic(text: str) -> str:
    """Spell Arabic typed on a Persian keyboard with Arabic kaf and yeh, and without joiners; Persian and Urdu stay."""
    if not _PERSIAN_SPELLING.search(text) or _PERSIAN_OR_URDU.search(text):
        return text
    text = _JOINER.sub(r"\1", text)
    if measure_script(text, "Arab") < MOST:
        return text
    return text.replace("\u06a9", "ك").replace("\u06cc", "ي")


_DIACRITIC = re.compile("[\u064b-\u0652\u0670]+")


def strip_diacritics(text: str) -> str:
    """Drop short vowels, tanwin, shadda, sukun and the dagger alef."""
    return _DIACRITIC.sub("", text)


def _compile_class(is_member: Callable[[str], bool]) -> str:
    """Return the members of the basic plane as the inside of a character class."""
    return re.escape("".join(filter(is_member, map(chr, range(0x10000)))))


_VOWEL_MARKS = (
    "\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e4\u06e7\u06e8"
    "\u06ea-\u06ed\u08ca-\u08e1\u08e3-\u08ff"
)
"Points and accents of Hebrew, vowels and Qur'anic marks of Arabic; in other scripts a mark makes another word."
_IGNORED = re.compile(f"[{_VOWEL_MARKS}{TATWEEL}{_compile_class(lambda char: unicodedata.category(char) == 'Cf')}]+")
_RAISED = re.compile(
    f"([{_compile_class(lambda char: unicodedata.decomposition(char).startswith(('<super>', '<sub>', '<fraction>')))}]+)"
)
_ALIKE = ("اأإآٱ", "وؤ", "يئىی", "هة", "كک", "ەۀ", "ہۂ", "ےۓ", '"“”„«»', "'‘’", "-‐‑–—−")
"Characters that count as the first of their group: hamza carriers, quotes, dashes."
_PLAIN = tuple((char, group[0]) for group in _ALIKE for char in group[1:])
_DIGIT = re.compile("[^\\D0-9]")
_BETWEEN_WORDS = re.compile("[،؛؟۔।॥。、]+|(?<=\\S)[.,:;!?]+(?=[\u0621-\u064a])")
_WORD_END = re.compile("(?<=\\S)[.,:;!?]+(?=[\"']*(?:\\s|\\Z))")
"Punctuation; in `3.5`, `a[1:]` and `a != b` the same characters are signs."


def match_key(text: str) -> str:
    """Return T2: the text without case, vowel marks of Arabic and Hebrew, punctuation and spacing.

    Numbers, signs and the marks of other scripts stay: `a + b` is not `a - b`, nor `pêché` `péché`.
    """
    text = _fold_forms(_PRESENTATION.sub(lambda match: _unfold(match[0]), text.lower()))
    text = _IGNORED.sub("", text)
    for char, plain in _PLAIN:
        text = text.replace(char, plain)
    text = _DIGIT.sub(lambda match: str(unicodedata.decimal(match[0])), text)
    return " ".join(_WORD_END.sub("", _BETWEEN_WORDS.sub(" ", text)).split())


def _fold_forms(text: str) -> str:
    """Apply NFKC to all but raised and lowered characters and fractions: x² is not x2."""
    if not _RAISED.search(text):
        return unicodedata.normalize("NFKC", text)
    parts = enumerate(_RAISED.split(text))
    return "".join(part if index % 2 else unicodedata.normalize("NFKC", part) for index, part in parts)
