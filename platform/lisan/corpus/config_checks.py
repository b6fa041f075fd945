"""Checks of a corpus config before anything is written.

Raises one ConfigError or DataError that names the key.
"""

import re

from lisan.core.artifact import Store
from lisan.core.errors import ConfigError, LisanError
from lisan.corpus.config import CorpusConfig, RowLayout, SourceConfig, SourceFormat
from lisan.corpus.first_rows import try_first_rows
from lisan.corpus.layouts.layouts import LAYOUTS
from lisan.corpus.sources.encoding import check_encoding
from lisan.microworld.sources import SOURCES
from lisan.records.kinds import RecordKind


def check(config: CorpusConfig, store: Store) -> None:  # noqa: ARG001  the signature of every stage
    """Refuse options without effect, missing files, wrong encodings and rows that do not fit the layout.

    All sources are checked before any error is raised.
    """
    if not config.sources:
        raise ConfigError("sources is empty; choose corpus=world, corpus=real, or set sources.NAME.path")
    faults = [fault for name, source in config.sources.items() if (fault := _find_fault(name, source)) is not None]
    if len(faults) > 1:
        listed = "".join(f"\n  {fault}" for fault in faults)
        raise type(faults[0])(f"{len(faults)} of {len(config.sources)} sources cannot be read:{listed}")
    if faults:
        raise faults[0]


def _find_fault(name: str, source: SourceConfig) -> LisanError | None:
    """Return the first error in a source's options, file names and first rows."""
    try:
        _check_options(name, source)
        if source.format is not SourceFormat.microworld:
            check_encoding(name, source)
            try_first_rows(name, source)
    except LisanError as error:
        return error
    return None


OPTIONS = {
    "path": tuple(fmt for fmt in SourceFormat if fmt is not SourceFormat.microworld),
    "pair_path": (SourceFormat.aligned,),
    "columns": (SourceFormat.csv, SourceFormat.tsv),
    "separator": (SourceFormat.text,),
    "world": (SourceFormat.microworld,),
}
"Formats in which an option has an effect."
REQUIRED = ("path", "pair_path", "world")


def _check_options(name: str, source: SourceConfig) -> None:
    """Raise ConfigError for an option that is missing or would have no effect."""
    key = f"sources.{name}"
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"{key} must be named with letters, digits, '.', '_' or '-': it becomes a folder")
    for option, formats in OPTIONS.items():
        value, needed = getattr(source, option), option in REQUIRED
        if value and source.format not in formats:
            raise ConfigError(f"{key}.{option} has no effect with format={source.format}; remove it")
        if not value and needed and source.format in formats:
            raise ConfigError(f"{key}.{option} must be set with format={source.format}")
    if source.max_records is not None and source.max_records < 1:
        raise ConfigError(f"{key}.max_records must be at least 1, got {source.max_records}; null means all")
    if source.split is not None and not re.fullmatch(r"[a-z][a-z0-9_]*", source.split):
        raise ConfigError(f"{key}.split must be lower-case letters, digits and '_', got {source.split!r}")
    _check_encoding_name(key, source.encoding)
    _check_kind(key, source)


def _check_encoding_name(key: str, encoding: str) -> None:
    try:
        works = "\n".encode(encoding) == b"\n"
    except LookupError as error:
        raise ConfigError(f"{key}.encoding {encoding!r} is unknown; expected utf-8, windows-1256, ...") from error
    if not works:
        raise ConfigError(f"{key}.encoding {encoding} is not read line by line; convert the files to utf-8 first")


def _check_kind(key: str, source: SourceConfig) -> None:
    if source.format is SourceFormat.microworld:
        if source.world not in SOURCES:
            raise ConfigError(f"{key}.world must be one of {', '.join(SOURCES)}, got {source.world!r}")
        made = SOURCES[source.world].kind
    else:
        made = LAYOUTS[source.layout][0]
        if not source.language:
            raise ConfigError(f"{key}.language must be set: en, ar, ary, arz, ...")
        if (source.layout is RowLayout.parallel) != bool(source.pair_language):
            raise ConfigError(
                f"{key}.pair_language goes with layout=parallel and only with it, got {source.pair_language!r}"
            )
    if source.contrast and made is not RecordKind.conversations:
        raise ConfigError(f"{key}.contrast needs a layout that makes conversations, {source.layout} makes {made}")
    wanted = RecordKind.preferences if source.contrast else made
    if source.kind is not wanted:
        raise ConfigError(f"{key}.kind must be {wanted} with these options, got {source.kind}")
