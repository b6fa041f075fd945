"""Tries the first rows of a source before the others are read, to report errors that all rows share."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.layouts.layouts import make_records
from lisan.corpus.sources.compressed import open_file
from lisan.corpus.sources.lines import BadRowError, DroppedRowError, Fault, Row
from lisan.corpus.sources.read_rows import read_range
from lisan.corpus.sources.read_tasks import FileRange, file_size, plan_read_tasks

NUM_ROWS = 100
MAX_WHOLE_BYTES = 64 << 20
"Limit of files that must be read whole for their first row; larger ones are not tried."


def try_first_rows(name: str, source: SourceConfig) -> None:
    """Raise DataError if none of the first `NUM_ROWS` rows of a source can be used."""
    ranges = plan_read_tasks(name, source)[0].ranges
    is_whole = source.format is SourceFormat.json or source.unit is not TextUnit.line
    if is_whole and file_size(ranges[0].path) > MAX_WHOLE_BYTES:
        return
    faults = list(islice(_first_faults(name, source, ranges), NUM_ROWS))
    if faults and faults[0] is not None and faults[-1] is not None:
        path, fault = faults[0]
        raise DataError(
            f"sources.{name}: none of the first {len(faults)} rows can be used; {path} line {fault.line}: {fault.reason}"
            + _hint(source, path)
        )


def _first_faults(name: str, source: SourceConfig, ranges: Sequence[FileRange]) -> Iterator[tuple[str, Fault] | None]:
    """Yield the file and fault of every row until one can be used; for that one, None."""
    for file_range in ranges:
        for item in read_range(file_range, source):
            if isinstance(item, Fault):
                yield file_range.path, item
            elif isinstance(item, Row):
                try:
                    list(make_records(item, name, source, Counter()))
                except BadRowError as error:
                    yield file_range.path, Fault(item.line, str(error), "")
                    continue
                except DroppedRowError:
                    pass
                yield None
                return


def _hint(source: SourceConfig, path: str) -> str:
    """Return a likely cause: a table without column names, a JSON array read line by line."""
    if source.format in (SourceFormat.csv, SourceFormat.tsv) and not source.columns:
        return "; the first line is taken for column names: if it is data, give the names in `columns`"
    if source.format is SourceFormat.jsonl:
        with open_file(path) as stream:
            return "; the file is one JSON array: set format=json" if stream.read(1) == b"[" else ""
    return ""
