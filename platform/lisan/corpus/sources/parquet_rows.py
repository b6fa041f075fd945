"""Rows of parquet files. A column is read when a layout first needs it."""

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lisan.core.errors import DataError
from lisan.corpus.config import SourceConfig
from lisan.corpus.sources.files import location_of
from lisan.corpus.sources.lines import BadRowError, Item, Lines, Row

BATCH_ROWS = 1024


def read_parquet(lines: Lines, source: SourceConfig) -> Iterator[Item]:  # noqa: ARG001  the signature of every reader
    path, name = lines.file_range.path, lines.file_range.name
    location = location_of(path)
    try:
        file = pq.ParquetFile(location.file_system.open_input_file(location.full_path))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path} is not a parquet file: {error}") from error
    columns = {column: _Column(file, column) for column in file.schema_arrow.names}
    for index in range(file.metadata.num_rows):
        yield Row(f"{name}:{index}", index + 1, _ColumnRow(columns, index))


class _Column:
    """The values of a column, batch by batch."""

    def __init__(self, file: pq.ParquetFile, name: str) -> None:
        self.file, self.name = file, name
        self.start = self.end = 0
        self.batches: Iterator[pa.RecordBatch] = iter(())
        self.array: pa.Array = pa.array([])
        self.values: list[Any] | None = []

    def read(self, index: int) -> Any:
        """Return a row's value; BadRowError if Python cannot represent it, such as a date after the year 9999."""
        if index < self.start or not self.end:
            self.start = self.end = 0
            self.batches = self.file.iter_batches(batch_size=BATCH_ROWS, columns=[self.name], use_threads=False)
        while index >= self.end:
            self.array = next(self.batches).column(0)
            self.start, self.end = self.end, self.end + len(self.array)
            self.values = _all_values(self.array)
        if self.values is not None:
            return self.values[index - self.start]
        try:
            return self.array[index - self.start].as_py()
        except (ValueError, OverflowError) as error:
            raise BadRowError(f"column {self.name} cannot be read: {error}") from error


def _all_values(array: pa.Array) -> list[Any] | None:
    """Return the values at once (10x), or None if Python cannot represent one of them."""
    try:
        values: list[Any] = array.to_pylist()
        return values
    except (ValueError, OverflowError):
        return None


class _ColumnRow(Mapping[str, Any]):
    """A row that reads its columns on access."""

    def __init__(self, columns: Mapping[str, _Column], index: int) -> None:
        self.columns, self.index = columns, index

    def __getitem__(self, name: str) -> Any:
        return self.columns[name].read(self.index)

    def __iter__(self) -> Iterator[str]:
        return iter(self.columns)

    def __len__(self) -> int:
        return len(self.columns)

    def __repr__(self) -> str:
        """Return the readable columns among those read so far."""
        shown = {}
        for name, column in self.columns.items():
            if column.end:
                try:
                    shown[name] = column.read(self.index)
                except BadRowError as error:
                    shown[name] = str(error)
        return repr(shown)
