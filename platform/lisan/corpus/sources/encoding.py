"""Checks that files have the encoding of their source's config.

Raises a DataError with the file, the byte and the likely encoding if most of a file is not text in that encoding. A few
undecodable lines are left to quarantine.
"""

import re
from collections.abc import Collection, Sequence

import regex

from lisan.core.errors import DataError
from lisan.corpus.clean.scripts import language_of, scripts_of
from lisan.corpus.config import SourceConfig, SourceFormat
from lisan.corpus.sources.files import find_files
from lisan.corpus.sources.lines import Lines
from lisan.corpus.sources.read_tasks import FileRange

TEXT_FORMATS = (
    SourceFormat.jsonl,
    SourceFormat.csv,
    SourceFormat.tsv,
    SourceFormat.text,
    SourceFormat.aligned,
    SourceFormat.json,
)
SNIFF_BYTES = 1 << 20
SNIFF_FILES = 200
"Files checked of a source, evenly spaced."


def check_encoding(name: str, source: SourceConfig) -> None:
    """Refuse a file whose first lines, or those that leave ASCII, are mostly not in the encoding of the config."""
    if source.format not in TEXT_FORMATS:
        return
    paths = find_files(f"sources.{name}.path", source.path, source.format)
    paths += find_files(f"sources.{name}.pair_path", source.pair_path, source.format)
    for path in paths[:: 1 + len(paths) // SNIFF_FILES]:
        lines = _first_lines(path)
        bad = _first_bad_byte(lines, source.encoding)
        if bad is not None:
            raise DataError(
                f"{path} is not {source.encoding}: byte {bad} cannot be decoded, nor can most lines that leave ASCII; "
                + _remedy(name, guess_encodings(lines, *filter(None, (source.language, source.pair_language))))
            )


def _remedy(name: str, likely: Sequence[str]) -> str:
    if not likely:
        return f"set sources.{name}.encoding to what it was written in, or convert it to utf-8"
    if likely[0] == "utf-16":
        return "it looks like utf-16: convert it to utf-8"
    others = f" (or {', '.join(likely[1:])})" if likely[1:] else ""
    return f"it may be {likely[0]}{others}: set sources.{name}.encoding={likely[0]} and look at the text, or convert it to utf-8"


def _first_lines(path: str) -> list[bytes]:
    lines: list[bytes] = []
    num_bytes = 0
    for _, _, line in Lines(FileRange(path, path)):
        lines.append(line)
        num_bytes += len(line)
        if num_bytes > SNIFF_BYTES:
            break
    return lines


def _first_bad_byte(lines: list[bytes], encoding: str) -> int | None:
    """Return the offset of the first undecodable byte when most lines, or most that leave ASCII, have one."""
    first, offset, num_bad, num_filled, num_special = None, 0, 0, 0, 0
    for line in lines:
        num_filled += bool(line.strip())
        num_special += not line.isascii()
        bad = _bad_byte(line, encoding)
        if bad is not None:
            num_bad += 1
            first = offset + bad if first is None else first
        offset += len(line)
    mostly = num_bad > num_filled / 2 or (num_bad >= 5 and num_bad > num_special / 2)
    return first if mostly else None


def _bad_byte(line: bytes, encoding: str) -> int | None:
    """Return the offset of the first undecodable byte of a line; a null byte is never text, but half of UTF-16."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return line.index(b"\0") if b"\0" in line else None


_LEGACY = {
    "Arab": ("windows-1256", "iso-8859-6"),
    "Hebr": ("windows-1255", "iso-8859-8"),
    "Thai": ("tis-620", "cp874"),
    "Cyrl": ("windows-1251", "koi8-r", "iso-8859-5", "cp866"),
    "Grek": ("windows-1253", "iso-8859-7"),
    "Hira": ("cp932", "euc-jp"),
    "Hang": ("cp949",),
    "Hani": ("gbk", "gb18030", "big5"),
    "Latn": ("windows-1252", "windows-1250", "windows-1254", "windows-1257", "windows-1258"),
}
"Encodings before Unicode by the script that they were made for; of one script, the more common ones first."
_LATIN = {
    "windows-1250": "pl cs sk hu hr sl ro sq bs",
    "windows-1254": "tr az ku",
    "windows-1257": "lt lv et",
    "windows-1258": "vi",
}
"Languages that come before the others of an encoding for Latin letters."
_COMMON = {
    "Arab": "ال",
    "Cyrl": "[оеаин]",
    "Hira": "[のにはをたがでてとし]",
    "Hang": "[이다는을의에가고하지]",
    "Hani": "[的一是不了在人有我他这這个個们們中来來上大为為和国國地到以说說时時要就出会會可也你对對生能]",
}
"Characters frequent in a script and rare in wrongly decoded bytes; without an entry, any letter counts."
_PUNCTUATION = r"\p{M}\p{P}\p{S}\p{Zs}ー"
_BESIDE_ASCII = re.compile("(?<=[A-Za-z])[^\x00-\x7f]|[^\x00-\x7f](?=[A-Za-z])")
"An accented letter; other scripts write whole words beyond ASCII."
PLAUSIBLE_RATIO, COMMON_RATIO, BESIDE_RATIO = 0.9, 0.02, 0.4
"Shares, of the characters that leave ASCII, that must be of the script, common in it, and for Latin letters beside ASCII ones."
SAMPLE_BYTES, NUM_NAMED = 1 << 16, 3


def guess_encodings(lines: Sequence[bytes], *labels: str) -> list[str]:
    """Return likely encodings of lines that are not UTF-8, most likely first.

    utf-16 is known by its null bytes, others by giving text in a script of the labels' languages.
    """
    if lines and (lines[0][:2] in (b"\xff\xfe", b"\xfe\xff") or any(b"\0" in line for line in lines)):
        return ["utf-16"]
    data = b"".join(line for line in lines if not line.isascii())[:SAMPLE_BYTES]
    languages, scripts = (
        [language_of(label) for label in labels],
        {script for label in labels for script in scripts_of(label)},
    )
    scores = {
        name: _score(data, name, script, scripts) for script in scripts & _LEGACY.keys() for name in _LEGACY[script]
    }
    for name in _LATIN.keys() & scores.keys():
        scores[name] *= 2 if set(languages) & set(_LATIN[name].split()) else 1
    order = [name for names in _LEGACY.values() for name in names if scores.get(name)]
    return sorted(order, key=lambda name: -scores[name])[:NUM_NAMED]


def _score(data: bytes, name: str, script: str, scripts: Collection[str]) -> float:
    """Return the share of common characters of a script in the data if it is in this encoding; 0 if it cannot be."""
    text = data.decode(name, errors="replace")
    special = "".join(char for char in text if not char.isascii())
    members = "".join(rf"\p{{Script={code}}}" for code in scripts)
    num_members = len(regex.findall(rf"[{members}{_PUNCTUATION}]", special))
    common = len(re.findall(_COMMON.get(script, "."), special)) / max(1, len(special))
    beside = len(_BESIDE_ASCII.findall(text)) if script == "Latn" else len(special)
    is_plausible = num_members >= PLAUSIBLE_RATIO * len(special) and beside >= BESIDE_RATIO * len(special)
    return common if is_plausible and common >= COMMON_RATIO else 0.0
