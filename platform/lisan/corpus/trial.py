"""Reads the first rows of a source before anything else is read, so that what is wrong with all of its rows is found at once."""

from collections import Counter
from itertools import islice

from lisan.core.errors import DataError
from lisan.corpus.fields import BadRowError, DroppedRowError
from lisan.corpus.layouts import make_records
from lisan.corpus.lines import Fault, SpanEnd
from lisan.corpus.rows import read_span
from lisan.corpus.sources import SourceConfig, SourceFormat, TextUnit, file_size, plan_pieces

NUM_ROWS = 100
MAX_WHOLE_BYTES = 64 << 20
"Of a file that is read whole to get at its first row; a larger one is not tried."


def try_first_rows(name: str, source: SourceConfig) -> None:
    """Raise DataError when none of the first rows of a source can be used; one that can ends the trial."""
    span = plan_pieces(name, source)[0].spans[0]
    is_whole = source.format is SourceFormat.json or source.unit is not TextUnit.line
    if is_whole and file_size(span.path) > MAX_WHOLE_BYTES:
        return
    fault: Fault | None = None
    num_faults = 0
    for item in islice(read_span(span, source), NUM_ROWS):
        if isinstance(item, SpanEnd):
            continue
        try:
            if not isinstance(item, Fault):
                list(make_records(item, name, source, Counter()))
                return
            fault = fault or item
        except DroppedRowError:
            return
        except BadRowError as error:
            fault = fault or Fault(item.line, str(error), "")
        num_faults += 1
    if fault is not None:
        raise DataError(
            f"sources.{name}: none of the first {num_faults} rows can be used; {span.path} line {fault.line}: {fault.reason}"
            + _hint(source)
        )


def _hint(source: SourceConfig) -> str:
    """Return what a table without column names may need."""
    if source.format not in (SourceFormat.csv, SourceFormat.tsv) or source.columns:
        return ""
    return "; the first line is taken for column names: if it is data, give the names in `columns`"
