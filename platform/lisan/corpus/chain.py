"""Rows of a read task to staged records: parse by layout, normalise, check the script, split.

The bytes depend on the task and the config alone, not on the worker or the order. Every row becomes records, is
dropped for a counted reason, or is quarantined with file and line.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from lisan.core.seed import derive_seed
from lisan.core.storage import Location
from lisan.corpus.clean.language import fits_script
from lisan.corpus.clean.normalise import normalise, strip_diacritics
from lisan.corpus.config import CorpusConfig, SourceConfig, SourceFormat
from lisan.corpus.dedup.exact import document_key
from lisan.corpus.layouts.layouts import contrast, make_records
from lisan.corpus.layouts.messages import unused_fields
from lisan.corpus.sources.lines import BadRowError, DroppedRowError, Fault, RangeEnd, Row, excerpt
from lisan.corpus.sources.read_rows import read_range
from lisan.corpus.sources.read_tasks import FileRange, ReadTask
from lisan.corpus.write_shards import EXTRA, open_writer
from lisan.microworld.sources import SOURCES, generate
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS, Conversation, Document, Preference, Record, Turn, to_table

BLOCK_RECORDS = 1024
CHUNK_CHARS = 8 << 20


class ReadStats:
    """Counts and faults of one read task."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.ranges: list[tuple[str, int, int]] = []
        self.damaged: list[str] = []

    def add_fault(self, file_range: FileRange, fault: Fault) -> None:
        self.counts["quarantined"] += 1
        position = {"file": file_range.path, "start": file_range.start, "line": fault.line}
        self.faults.append({**position, "reason": fault.reason, "text": fault.text})
        if fault.is_damage:
            self.damaged.append(f"{file_range.path}: {fault.reason}")


def run_read_task(task: ReadTask, config: CorpusConfig, staging: Location) -> dict[str, Any]:
    """Read, parse, normalise and split the rows of one task; write them to staging and return their counts."""
    stats, name = ReadStats(), f"{task.index:05d}"
    source, folder = config.sources[task.source], (staging / task.source).make()
    schema, labels = pa.schema([*SCHEMAS[source.kind], *EXTRA]), labels_of(source)
    with open_writer(folder / f"{name}.parquet", schema) as writer:
        for chunk in _chunks(_records(task, config, stats)):
            made = _contrast(chunk, config.seed, stats) if source.contrast else chunk
            records = [
                record for record in (_clean(record, labels, config, stats) for record in made) if record is not None
            ]
            if records:
                table = _stage_records(records, source, config)
                stats.counts["bytes"] += pc.sum(table["_bytes"]).as_py()
                stats.counts["records"] += table.num_rows
                writer.write_table(table)
    if stats.faults:
        lines = [json.dumps(fault, ensure_ascii=False) for fault in stats.faults]
        (folder / f"{name}.faults.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    return {
        "source": task.source,
        "index": task.index,
        "dropped": dict(+stats.dropped),
        "notes": dict(stats.notes),
        "unused": dict(stats.unused),
        "ranges": stats.ranges,
        "faults": stats.faults[:1],
        "damaged": stats.damaged,
        **stats.counts,
    }


def _records(task: ReadTask, config: CorpusConfig, stats: ReadStats) -> Iterator[Record]:
    source = config.sources[task.source]
    if source.format is SourceFormat.microworld:
        for record in islice(generate(source.world, config.microworld), source.max_records):
            stats.counts["read"] += 1
            yield replace(record, source=task.source)
        return
    for file_range in task.ranges:
        for item in read_range(file_range, source):
            if isinstance(item, RangeEnd):
                stats.ranges.append((file_range.path, file_range.start, item.num_lines))
                continue
            if stats.counts["read"] == source.max_records:
                return
            stats.counts["read"] += 1
            if isinstance(item, Fault):
                stats.add_fault(file_range, item)
            else:
                yield from _parse_row(item, file_range, task.source, source, stats)


def _contrast(chunk: list[Record], seed: int, stats: ReadStats) -> list[Record]:
    made = contrast([record for record in chunk if isinstance(record, Conversation)], seed)
    stats.dropped["no other answer"] += len(chunk) - len(made)
    return list(made)


def _parse_row(row: Row, file_range: FileRange, name: str, source: SourceConfig, stats: ReadStats) -> Iterator[Record]:
    try:
        records = list(make_records(row, name, source, stats.notes))
        unused = list(unused_fields(row.value, source))
    except BadRowError as error:
        value = row.value if isinstance(row.value, str) else json.dumps(row.value, ensure_ascii=False, default=str)
        stats.add_fault(file_range, Fault(row.line, str(error), excerpt(value)))
    except DroppedRowError as error:
        stats.dropped[str(error)] += 1
    else:
        stats.unused.update(unused)
        yield from records


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    """Cut the stream by number and size, so that neither many records nor long ones fill the memory."""
    chunk: list[Record] = []
    chars = 0
    for record in records:
        chunk.append(record)
        chars += sum(map(len, texts_of(record)))
        if len(chunk) == BLOCK_RECORDS or chars >= CHUNK_CHARS:
            yield chunk
            chunk, chars = [], 0
    if chunk:
        yield chunk


def texts_of(record: Record) -> list[str]:
    """Return every text of a record in reading order."""
    if isinstance(record, Document):
        return [record.text]
    if isinstance(record, Conversation):
        return [turn.content for turn in record.turns]
    if isinstance(record, Preference):
        return [*(turn.content for turn in record.prompt), record.chosen, record.rejected]
    return [record.question, *record.choices]


def replace_texts(record: Record, texts: list[str]) -> Record:
    """Return the record with its texts, in the order of `texts_of`, replaced."""
    if isinstance(record, Document):
        return replace(record, text=texts[0])
    if isinstance(record, Conversation):
        return replace(record, turns=_replace_turns(record.turns, texts))
    if isinstance(record, Preference):
        return replace(record, prompt=_replace_turns(record.prompt, texts[:-2]), chosen=texts[-2], rejected=texts[-1])
    return replace(record, question=texts[0], choices=tuple(texts[1:]))


def _replace_turns(turns: tuple[Turn, ...], texts: list[str]) -> tuple[Turn, ...]:
    return tuple(replace(turn, content=text) for turn, text in zip(turns, texts, strict=True))


def labels_of(source: SourceConfig) -> tuple[str, ...]:
    """Return the labels of the languages in a source: one, or both of a pair."""
    if source.format is SourceFormat.microworld:
        return tuple(SOURCES[source.world].language.split("-"))
    return (source.language, source.pair_language) if source.pair_language else (source.language,)


def _clean(record: Record, labels: Sequence[str], config: CorpusConfig, stats: ReadStats) -> Record | None:
    """Normalise every text; a record whose texts are blank afterwards is dropped."""
    if config.normalise.enabled:
        before = texts_of(record)
        texts = [normalise(text, *labels) for text in before]
        if config.normalise.strip_diacritics:
            texts = [strip_diacritics(text) for text in texts]
        if texts != before:
            stats.counts["changed"] += 1
            record = replace_texts(record, texts)
    texts = texts_of(record)
    needed = texts[-2:] if isinstance(record, Preference) else texts
    if not all(text.strip() for text in needed):
        stats.dropped["empty after normalisation"] += 1
        return None
    if isinstance(record, Document) and not fits_script(record.text, *labels):
        stats.counts["flagged"] += 1
        record = replace(record, meta={**record.meta, "flag": "script"})
    return record


def _stage_records(records: list[Record], source: SourceConfig, config: CorpusConfig) -> pa.Table:
    texts = [texts_of(record) for record in records]
    keyed = source.kind is RecordKind.documents and config.dedup.exact
    keys = [document_key(parts[0]) if keyed else (0, 0) for parts in texts]
    extra = {
        "_split": [split_of(record, source, config) for record in records],
        "_bytes": [sum(len(part.encode()) for part in parts) for parts in texts],
        "_words": [sum(len(part.split()) for part in parts) for parts in texts],
        "_length": [sum(map(len, parts)) for parts in texts],
        "_key_high": [high for high, _ in keys],
        "_key_low": [low for _, low in keys],
    }
    table = to_table(records, source.kind)
    for name, kind in EXTRA:
        table = table.append_column(name, pa.array(extra[name], kind))
    return table


def split_of(record: Record, source: SourceConfig, config: CorpusConfig) -> str:
    """Return the split of a record: records of one pair share it, and it moves only with the seed and the id."""
    if source.split is not None:
        return source.split
    if source.kind is RecordKind.questions:
        return "validation"
    point = derive_seed(config.seed, "split", record.meta.get("pair", record.id)) / 2**63
    return "validation" if point < config.validation_ratio else "train"
