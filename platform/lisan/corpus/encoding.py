"""Whether files are in the encoding that their source says.

In: a source. Out: nothing, or a DataError with the file, the byte and the likely encoding. Always: a few undecodable
lines are left to quarantine; a file that is mostly not text in that encoding is refused before it is read. `checks`
calls it.
"""

from lisan.core.errors import DataError
from lisan.corpus.files import find_files
from lisan.corpus.lines import Lines
from lisan.corpus.sources import SourceConfig, SourceFormat, Span

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
"Of a source with more files, so many spread over all of them are looked at."


def check_encoding(name: str, source: SourceConfig) -> None:
    """Refuse a file whose first lines, or those that leave ASCII, are mostly not in the encoding of the config."""
    if source.format not in TEXT_FORMATS:
        return
    paths = find_files(f"sources.{name}.path", source.path, source.format)
    for path in paths[:: 1 + len(paths) // SNIFF_FILES]:
        lines = _first_lines(path)
        bad = _first_bad_byte(lines, source.encoding)
        if bad is not None:
            likely = guess_encoding(b"".join(lines))
            remedy = "convert it to utf-8" if likely == "utf-16" else f"set sources.{name}.encoding={likely}"
            raise DataError(
                f"{path} is not {source.encoding}: byte {bad} cannot be decoded, nor can most lines that leave ASCII; "
                f"it looks like {likely}: {remedy}"
            )


def _first_lines(path: str) -> list[bytes]:
    lines: list[bytes] = []
    num_bytes = 0
    for _, _, line in Lines(Span(path, path)):
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
    """Return where a line cannot be decoded; a null byte is never text, but half of UTF-16."""
    try:
        line.decode(encoding)
    except UnicodeDecodeError as error:
        return error.start
    return line.index(b"\0") if b"\0" in line else None


def guess_encoding(data: bytes) -> str:
    """Name the likely encoding of bytes that are not UTF-8: by null bytes, or by the article of Arabic."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in data:
        return "utf-16"
    articles = {name: data.decode(name, errors="replace").count("ال") for name in ("windows-1256", "iso-8859-6")}
    best = max(articles, key=lambda name: articles[name])
    return best if articles[best] > len(data) / 1000 else "latin-1"
