"""Script and language of a text, by counting letters and a few typical words.

A text that does not fit its source's label is flagged and counted, never dropped.
"""

import re

import regex

from lisan.corpus.clean.scripts import letters_of, scripts_of

_LETTERS = regex.compile(r"\p{L}+")
_MOROCCAN = re.compile("(?<!\\w)(?:ديال\\w*|غادي|واش|بزاف|كيفاش|علاش|دابا|هاد|حيت|شي|اللي|كاين\\w*|ماشي|بحال)(?!\\w)")
_EGYPTIAN = re.compile("(?<!\\w)(?:ده|دى|دي|اللى|بتاع\\w*|عشان|ازاي|علشان|كمان|مش|بيعتبر|التانى|برضه)(?!\\w)")
_ARABIZI = re.compile("(?<!\\w)(?=[A-Za-z]*[235789][A-Za-z])[A-Za-z235789]{2,}(?!\\w)")
SAMPLE_CHARS = 4000
"Characters examined per text; scripts rarely change within one."
MOST, SOME = 0.5, 0.1
"Share of letters that a text's script needs, and that each of the two scripts of a pair needs."


def measure_script(text: str, *scripts: str) -> float:
    """Return the share (0..1) of the letters in the first `SAMPLE_CHARS` that are of these ISO 15924 scripts."""
    sample = text[:SAMPLE_CHARS]
    return _count(letters_of(scripts), sample) / (_count(_LETTERS, sample) or 1)


def _count(letters: "regex.Pattern[str]", sample: str) -> int:
    return sum(map(len, letters.findall(sample)))


def guess_language(text: str) -> str:
    """Return en, ar, ary, arz, ary-Latn or und. Latin text without Arabizi digits counts as English."""
    sample = text[:SAMPLE_CHARS]
    if measure_script(sample, "Arab") >= MOST:
        words = max(1, len(sample.split()))
        moroccan, egyptian = len(_MOROCCAN.findall(sample)) / words, len(_EGYPTIAN.findall(sample)) / words
        if max(moroccan, egyptian) < 0.03:
            return "ar"
        return "ary" if moroccan >= egyptian else "arz"
    if measure_script(sample, "Latn") >= MOST:
        return "ary-Latn" if len(_ARABIZI.findall(sample)) >= 0.1 * len(sample.split()) else "en"
    return "und"


def fits_script(text: str, *labels: str) -> bool:
    """Tell whether most letters are of the scripts of the labels' languages.

    A text of two labels needs some letters of each script. A text without letters fits, and so does one
    with a label of unknown script.
    """
    wanted = {scripts for scripts in map(scripts_of, labels) if scripts}
    least = MOST if len(wanted) == 1 and all(map(scripts_of, labels)) else SOME
    return all(_has_share(text[:SAMPLE_CHARS], scripts, least) for scripts in wanted)


def _has_share(sample: str, scripts: tuple[str, ...], least: float) -> bool:
    """Compare with the number of characters first: where that is enough, the letters need no count (2x)."""
    num_wanted = _count(letters_of(scripts), sample)
    return num_wanted >= least * len(sample) or num_wanted >= least * _count(_LETTERS, sample)
