"""Reads the first rows of a source before anything else is read, so that what is wrong with all of its rows is found at once."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig, SourceFormat, TextUnit
from lisan.corpus.layouts.fields import BadRowError, DroppedRowError
from lisan.corpus.layouts.layouts import make_records
from lisan.corpus.sources.compressed import open_file
from lisan.corpus.sources.find import Span, file_size, plan_pieces
from lisan.corpus.sources.lines import Fault, Row
from lisan.corpus.sources.read_rows import read_span

NUM_ROWS = 100
MAX_WHOLE_BYTES = 64 << 20
"Of a file that is read whole to get at its first row; a larger one is not tried."


def try_first_rows(name: str, source: SourceConfig) -> None:
    """Raise DataError when none of the first rows of a source can be used; one that can ends the trial."""
    spans = plan_pieces(name, source)[0].spans
    is_whole = source.format is SourceFormat.json or source.unit is not TextUnit.line
    if is_whole and file_size(spans[0].path) > MAX_WHOLE_BYTES:
        return
    faults = list(islice(_first_faults(name, source, spans), NUM_ROWS))
    if faults and faults[0] is not None and faults[-1] is not None:
        path, fault = faults[0]
        raise DataError(
            f"sources.{name}: none of the first {len(faults)} rows can be used; {path} line {fault.line}: {fault.reason}"
            + _hint(source, path)
        )


def _first_faults(name: str, source: SourceConfig, spans: Sequence[Span]) -> Iterator[tuple[str, Fault] | None]:
    """Yield the file and fault of every row until one can be used; for that one, None."""
    for span in spans:
        for item in read_span(span, source):
            if isinstance(item, Fault):
                yield span.path, item
            elif isinstance(item, Row):
                try:
                    list(make_records(item, name, source, Counter()))
                except BadRowError as error:
                    yield span.path, Fault(item.line, str(error), "")
                    continue
                except DroppedRowError:
                    pass
                yield None
                return


def _hint(source: SourceConfig, path: str) -> str:
    """Return what often is behind it: a table without column names, a JSON array read line by line."""
    if source.format in (SourceFormat.csv, SourceFormat.tsv) and not source.columns:
        return "; the first line is taken for column names: if it is data, give the names in `columns`"
    if source.format is SourceFormat.jsonl:
        with open_file(path) as stream:
            return "; the file is one JSON array: set format=json" if stream.read(1) == b"[" else ""
    return ""
