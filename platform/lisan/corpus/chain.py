"""The chain from rows to records on one piece of a source: lay out, normalise, verify, split.

In: a `Piece` and the corpus config. Out: a staged table and its counts. Always: the same bytes whoever runs it and in
whatever order, and every row read becomes records, is dropped for a reason or quarantined with file and line. `build`
runs it, in this process or as Ray tasks.
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
from lisan.corpus.layouts.fields import BadRowError, DroppedRowError
from lisan.corpus.layouts.layouts import contrast, make_records
from lisan.corpus.layouts.messages import unused_fields
from lisan.corpus.sources.find import Piece, Span
from lisan.corpus.sources.lines import Fault, Row, SpanEnd, excerpt
from lisan.corpus.sources.read_rows import read_span
from lisan.corpus.write_shards import EXTRA, open_writer
from lisan.microworld.sources import SOURCES, generate
from lisan.records.kinds import RecordKind
from lisan.records.records import SCHEMAS, Conversation, Document, Preference, Record, Turn, to_table

BLOCK_RECORDS = 1024
CHUNK_CHARS = 8 << 20


class Tally:
    """Counts of one piece."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.notes: Counter[str] = Counter()
        self.unused: Counter[str] = Counter()
        self.faults: list[dict[str, Any]] = []
        self.spans: list[tuple[str, int, int]] = []
        self.damaged: list[str] = []

    def add_fault(self, span: Span, fault: Fault) -> None:
        self.counts["quarantined"] += 1
        place = {"file": span.path, "start": span.start, "line": fault.line}
        self.faults.append({**place, "reason": fault.reason, "text": fault.text})
        if fault.is_damage:
            self.damaged.append(f"{span.path}: {fault.reason}")


def read_piece(piece: Piece, config: CorpusConfig, staging: Location) -> dict[str, Any]:
    """Read, lay out, normalise and split one piece; write it to staging and return its counts."""
    tally, name = Tally(), f"{piece.index:05d}"
    source, folder = config.sources[piece.source], (staging / piece.source).make()
    schema, labels = pa.schema([*SCHEMAS[source.kind], *EXTRA]), labels_of(source)
    with open_writer(folder / f"{name}.parquet", schema) as writer:
        for chunk in _chunks(_records(piece, config, tally)):
            made = _contrast(chunk, config.seed, tally) if source.contrast else chunk
            records = [
                record for record in (_clean(record, labels, config, tally) for record in made) if record is not None
            ]
            if records:
                table = _stage_records(records, source, config)
                tally.counts["bytes"] += pc.sum(table["_bytes"]).as_py()
                tally.counts["records"] += table.num_rows
                writer.write_table(table)
    if tally.faults:
        lines = [json.dumps(fault, ensure_ascii=False) for fault in tally.faults]
        (folder / f"{name}.faults.jsonl").write_bytes("".join(f"{line}\n" for line in lines).encode())
    return {
        "source": piece.source,
        "index": piece.index,
        "dropped": dict(+tally.dropped),
        "notes": dict(tally.notes),
        "unused": dict(tally.unused),
        "spans": tally.spans,
        "faults": tally.faults[:1],
        "damaged": tally.damaged,
        **tally.counts,
    }


def _records(piece: Piece, config: CorpusConfig, tally: Tally) -> Iterator[Record]:
    source = config.sources[piece.source]
    if source.format is SourceFormat.microworld:
        for record in islice(generate(source.world, config.microworld), source.max_records):
            tally.counts["read"] += 1
            yield replace(record, source=piece.source)
        return
    for span in piece.spans:
        for item in read_span(span, source):
            if isinstance(item, SpanEnd):
                tally.spans.append((span.path, span.start, item.num_lines))
                continue
            if tally.counts["read"] == source.max_records:
                return
            tally.counts["read"] += 1
            if isinstance(item, Fault):
                tally.add_fault(span, item)
            else:
                yield from _lay_out(item, span, piece.source, source, tally)


def _contrast(chunk: list[Record], seed: int, tally: Tally) -> list[Record]:
    made = contrast([record for record in chunk if isinstance(record, Conversation)], seed)
    tally.dropped["no other answer"] += len(chunk) - len(made)
    return list(made)


def _lay_out(row: Row, span: Span, name: str, source: SourceConfig, tally: Tally) -> Iterator[Record]:
    try:
        records = list(make_records(row, name, source, tally.notes))
        unused = list(unused_fields(row.value, source))
    except BadRowError as error:
        value = row.value if isinstance(row.value, str) else json.dumps(row.value, ensure_ascii=False, default=str)
        tally.add_fault(span, Fault(row.line, str(error), excerpt(value)))
    except DroppedRowError as error:
        tally.dropped[str(error)] += 1
    else:
        tally.unused.update(unused)
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
    """Put texts back where `texts_of` took them from."""
    if isinstance(record, Document):
        return replace(record, text=texts[0])
    if isinstance(record, Conversation):
        return replace(record, turns=_say(record.turns, texts))
    if isinstance(record, Preference):
        return replace(record, prompt=_say(record.prompt, texts[:-2]), chosen=texts[-2], rejected=texts[-1])
    return replace(record, question=texts[0], choices=tuple(texts[1:]))


def _say(turns: tuple[Turn, ...], texts: list[str]) -> tuple[Turn, ...]:
    return tuple(replace(turn, content=text) for turn, text in zip(turns, texts, strict=True))


def labels_of(source: SourceConfig) -> tuple[str, ...]:
    """Return the labels of the languages in a source: one, or both of a pair."""
    if source.format is SourceFormat.microworld:
        return tuple(SOURCES[source.world].language.split("-"))
    return (source.language, source.pair_language) if source.pair_language else (source.language,)


def _clean(record: Record, labels: Sequence[str], config: CorpusConfig, tally: Tally) -> Record | None:
    """Normalise every text; a record whose texts are blank afterwards is dropped."""
    if config.normalise.enabled:
        before = texts_of(record)
        texts = [normalise(text, *labels) for text in before]
        if config.normalise.strip_diacritics:
            texts = [strip_diacritics(text) for text in texts]
        if texts != before:
            tally.counts["changed"] += 1
            record = replace_texts(record, texts)
    texts = texts_of(record)
    needed = texts[-2:] if isinstance(record, Preference) else texts
    if not all(text.strip() for text in needed):
        tally.dropped["empty after normalisation"] += 1
        return None
    if isinstance(record, Document) and not fits_script(record.text, *labels):
        tally.counts["flagged"] += 1
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
    draw = derive_seed(config.seed, "split", record.meta.get("pair", record.id)) / 2**63
    return "validation" if draw < config.validation_ratio else "train"
