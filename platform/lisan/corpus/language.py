"""Which script and language a text is in, by counting letters and a few telling words.

In: text. Out: shares of scripts and a BCP 47-like label. Used to verify the label a source claims, never to drop: a
text that disagrees is flagged and counted. `normalise` asks it before it touches Persian letters, `chain` for every
document.
"""

import re
from dataclasses import dataclass

ARABIC_LANGUAGES = ("ar", "ary", "arz", "apc", "arq", "aeb", "ars", "acm", "ayl")
"Modern Standard Arabic and the dialects that have a label: Moroccan, Egyptian, Levantine, Algerian, ..."

_ARABIC_LETTERS = re.compile("[\u0620-\u064a\u066e-\u06d3\u0750-\u077f\u08a0-\u08c9\ufb50-\ufdf9\ufe80-\ufefc]+")
_LATIN_LETTERS = re.compile("[A-Za-z\u00c0-\u024f]+")
_OTHER_LETTERS = re.compile("[\u0370-\u05ff\u0700-\u074f\u0780-\u07bf\u0900-\u1fff\u2c00-\ud7ff]+")
_MOROCCAN = re.compile("(?<!\\w)(?:ديال\\w*|غادي|واش|بزاف|كيفاش|علاش|دابا|هاد|حيت|شي|اللي|كاين\\w*|ماشي|بحال)(?!\\w)")
_EGYPTIAN = re.compile("(?<!\\w)(?:ده|دى|دي|اللى|بتاع\\w*|عشان|ازاي|علشان|كمان|مش|بيعتبر|التانى|برضه)(?!\\w)")
_ARABIZI = re.compile("(?<!\\w)(?=[A-Za-z]*[235789][A-Za-z])[A-Za-z235789]{2,}(?!\\w)")
SAMPLE_CHARS = 4000
"How much of a text is looked at; scripts do not change often enough to read a book for them."


@dataclass(frozen=True, slots=True)
class ScriptShares:
    """Shares of a text's letters, each in 0..1; all zero when it has no letters."""

    arabic: float
    latin: float
    other: float


def is_arabic(language: str) -> bool:
    """Tell whether a label means Arabic in Arabic script; `ary-Latn` is Moroccan in Latin letters and does not."""
    return language in ARABIC_LANGUAGES


def measure_scripts(text: str) -> ScriptShares:
    """Return the share of letters of each script in the first `SAMPLE_CHARS` characters."""
    sample = text[:SAMPLE_CHARS]
    counts = [sum(map(len, letters.findall(sample))) for letters in (_ARABIC_LETTERS, _LATIN_LETTERS, _OTHER_LETTERS)]
    total = sum(counts) or 1
    return ScriptShares(*(count / total for count in counts))


def guess_language(text: str) -> str:
    """Return en, ar, ary, arz, ary-Latn or und. Latin text without Arabizi digits counts as English."""
    sample = text[:SAMPLE_CHARS]
    shares = measure_scripts(sample)
    if shares.arabic >= 0.5:
        words = max(1, len(sample.split()))
        moroccan, egyptian = len(_MOROCCAN.findall(sample)) / words, len(_EGYPTIAN.findall(sample)) / words
        if max(moroccan, egyptian) < 0.03:
            return "ar"
        return "ary" if moroccan >= egyptian else "arz"
    if shares.latin >= 0.5:
        return "ary-Latn" if len(_ARABIZI.findall(sample)) >= 0.1 * len(sample.split()) else "en"
    return "und"


def fits_script(text: str, language: str) -> bool:
    """Tell whether most letters are of the script that the label implies; text without letters fits any.

    A label of two languages (`en-ar`) needs both of their scripts.
    """
    shares = measure_scripts(text)
    if shares == ScriptShares(0.0, 0.0, 0.0):
        return True
    parts = language.replace("-Latn", "+Latn").split("-")
    wanted = {"arabic" if is_arabic(part) else "latin" for part in parts}
    found = [share for script, share in (("arabic", shares.arabic), ("latin", shares.latin)) if script in wanted]
    return min(found) >= (0.1 if len(found) == 2 else 0.5)
