"""The `build_corpus` stage: sources to a corpus, on Ray Data or in this process.

In: files or the micro-world. Out: parquet by kind, source and split, quarantine, and counts for every source. Always:
the same files for any number of workers; nothing read is lost without a count; an empty source stops the stage. Three
passes: pieces are read and staged, duplicates are found by key, parts are written. The only file of this room that
knows Ray; `lisan.job_table` names its `CORPUS`.
"""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from lisan.core.artifact import Draft, Kind, Ref
from lisan.core.errors import DataError, LisanError
from lisan.core.stage import ClusterConfig, Run, Stage
from lisan.core.storage import Location
from lisan.corpus.chain import CorpusConfig, read_piece
from lisan.corpus.checks import check
from lisan.corpus.dedup import KEYS, REMOVALS, find_removals, keep_survivors
from lisan.corpus.microworld import SOURCES
from lisan.corpus.parts import Part, read_keys, write_part
from lisan.corpus.records import RecordKind
from lisan.corpus.sources import Piece, SourceConfig, SourceFormat, TextUnit, find_files, plan_pieces

__all__ = ["CORPUS", "CorpusConfig", "build_corpus", "check"]

PART_BYTES = 256 << 20
"Of text, before compression; one file of the corpus is about a third of it."
KEYS_PER_PARTITION = 300_000
"""Some 20 MB: Ray Data cuts larger blocks in two, and a key must not be on both sides of a cut. Up to one partition is
compared in this process (0.1 s); a shuffle costs 5 s and more."""
SAY_EVERY_S = 5.0
PAGE_LINE_WORDS = 15
"A line of a printed page has about ten words."
DUPLICATES_LIMIT, FAULTS_LIMIT = 0.5, 0.1
"Shares of a source's documents or rows above which a warning is printed."
READ_COUNTS = ("read", "quarantined", "changed", "flagged", "records")
Facts = dict[str, Any]


def build_corpus(config: CorpusConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    """Run the three passes and return the counts of the manifest."""
    staging = draft.location / "staging"
    each = _map_on_ray if config.cluster.num_workers else _map_here
    pieces = [piece for name, source in config.sources.items() for piece in plan_pieces(name, source)]
    read = _watch(each(partial(read_piece, config=config, staging=staging), pieces, config.cluster), pieces)
    facts = _sum_read(config, read)
    removed = _find_duplicates(config, pieces, read, staging)
    parts = _plan_parts(config, pieces, read, removed)
    write = partial(write_part, dedup=config.dedup.exact, staging=staging, target=draft.location)
    for written in each(write, parts, config.cluster):
        _add_written(facts[written["source"]], written)
    _write_quarantine(read, staging, draft.location)
    staging.delete()
    for name, counts in facts.items():
        _report(name, counts)
        _advise(name, config.sources[name], counts)
    run.log_metrics({f"kept/{name}": counts["kept"] for name, counts in facts.items()})
    keys = ("kept", "duplicates", "quarantined", "bytes", "words")
    totals = {key: sum(counts[key] for counts in facts.values()) for key in keys}
    return {"sources": facts, "records": totals.pop("kept"), **totals}


def _watch(results: Iterator[Facts], pieces: Sequence[Piece]) -> list[Facts]:
    """Collect the counts of pieces, saying how far they are every few seconds; return them in the pieces' order."""
    done: list[Facts] = []
    said = time.monotonic()
    for facts in results:
        done.append(facts)
        if time.monotonic() - said > SAY_EVERY_S:
            said = time.monotonic()
            records = sum(piece.get("records", 0) for piece in done)
            print(f"  read {len(done)}/{len(pieces)} pieces, {records:,} records", flush=True)
    place = {(piece.source, piece.index): number for number, piece in enumerate(pieces)}
    return sorted(done, key=lambda facts: place[facts["source"], facts["index"]])


def _sum_read(config: CorpusConfig, read: Sequence[Facts]) -> dict[str, Facts]:
    """Add the counts of pieces up by source; DataError when a source has nothing left."""
    facts: dict[str, Facts] = {}
    for name, source in config.sources.items():
        mine = [piece for piece in read if piece["source"] == name]
        counts = {key: sum(piece.get(key, 0) for piece in mine) for key in READ_COUNTS}
        dropped, notes, unused = (
            dict(sum((Counter(piece[key]) for piece in mine), Counter[str]())) for key in ("dropped", "notes", "unused")
        )
        if not counts.pop("records"):
            fault = next(
                (
                    f"; first: {fault['file']} line {fault['line']}: {fault['reason']}"
                    for piece in mine
                    for fault in piece["faults"]
                ),
                "",
            )
            raise DataError(
                f"sources.{name} has 0 records left of {counts['read']} rows: {counts['quarantined']} quarantined, "
                f"dropped {dropped}{fault}; correct the source, or leave it out with ~sources.{name}"
            )
        facts[name] = {
            "kind": source.kind.value,
            "language": _language_of(source),
            "licence": source.licence,
            **counts,
            "dropped": dropped,
            "notes": notes,
            "unused": unused,
            "duplicates": 0,
            "kept": 0,
            "bytes": 0,
            "words": 0,
            "splits": {},
        }
    return facts


def _language_of(source: SourceConfig) -> str:
    if source.format is SourceFormat.microworld:
        return SOURCES[source.world].language
    return f"{source.language}-{source.pair_language}" if source.pair_language else source.language


def _find_duplicates(
    config: CorpusConfig, pieces: Sequence[Piece], read: Sequence[Facts], staging: Location
) -> dict[int, np.ndarray]:
    """Return the rows to remove, by the number of their piece."""
    kinds = [config.sources[piece.source].kind for piece in pieces]
    documents = [number for number, kind in enumerate(kinds) if kind is RecordKind.documents]
    if not config.dedup.exact or not documents:
        return {}
    keys_of = partial(_surviving_keys, pieces=pieces, staging=staging)
    num_keys = sum(read[number].get("records", 0) for number in documents)
    if config.cluster.num_workers and num_keys > KEYS_PER_PARTITION:
        removals = _remove_on_ray(keys_of, documents, 1 + num_keys // KEYS_PER_PARTITION, config.cluster)
    else:
        removals = find_removals(pa.concat_tables([keys_of(number) for number in documents]))
    number, row = (removals[name].to_numpy() for name in REMOVALS.names)
    return {int(piece): np.sort(row[number == piece]) for piece in np.unique(number)}


def _surviving_keys(number: int, pieces: Sequence[Piece], staging: Location) -> pa.Table:
    return keep_survivors(read_keys(staging, pieces[number].source, pieces[number].index, number))


def _plan_parts(
    config: CorpusConfig, pieces: Sequence[Piece], read: Sequence[Facts], removed: Mapping[int, np.ndarray]
) -> list[Part]:
    """Group neighbouring pieces of a source into parts of about `PART_BYTES`."""
    groups: dict[str, list[list[int]]] = defaultdict(list)
    room = 0
    for number, piece in enumerate(pieces):
        size = read[number].get("bytes", 0)
        if not groups[piece.source] or room < size:
            groups[piece.source].append([])
            room = PART_BYTES
        groups[piece.source][-1].append(number)
        room -= size
    return [
        Part(
            name,
            config.sources[name].kind,
            index,
            tuple(pieces[number].index for number in numbers),
            {pieces[number].index: removed[number] for number in numbers if number in removed},
        )
        for name, numbered in groups.items()
        for index, numbers in enumerate(numbered)
    ]


def _add_written(facts: Facts, written: Facts) -> None:
    facts["duplicates"] += written["duplicates"]
    for split, counts in written["splits"].items():
        total = facts["splits"].setdefault(split, {"records": 0, "bytes": 0, "words": 0})
        for key, value in counts.items():
            total[key] += value
            facts["kept" if key == "records" else key] += value


def _write_quarantine(read: Sequence[Facts], staging: Location, target: Location) -> None:
    """Write `quarantine/<source>.jsonl`, line numbers counted from the start of each file."""
    lines_of: dict[str, list[str]] = defaultdict(list)
    spans = {(path, start): num for piece in read for path, start, num in piece["spans"]}
    for piece in read:
        place = staging / piece["source"] / f"{piece['index']:05d}.faults.jsonl"
        if not piece["faults"]:
            continue
        for fault in map(json.loads, place.read_bytes().decode().splitlines()):
            start = fault.pop("start")
            fault["line"] += sum(num for (path, other), num in spans.items() if path == fault["file"] and other < start)
            lines_of[piece["source"]].append(json.dumps(fault, ensure_ascii=False) + "\n")
    for name, lines in lines_of.items():
        (target / "quarantine" / f"{name}.jsonl").write_bytes("".join(lines).encode())


def _report(name: str, counts: Facts) -> None:
    """Say what became of a source in a line, and warn of heavy losses; DataError when nothing is left."""
    if not counts["kept"]:
        raise DataError(
            f"sources.{name} has 0 records left: each of its {counts['duplicates']} documents is in another source "
            f"too; leave it out with ~sources.{name}, or set dedup.exact=false"
        )
    dropped, megabytes = sum(counts["dropped"].values()), counts["bytes"] / 1e6
    lost = f"{counts['quarantined']} quarantined, {dropped} dropped, {counts['duplicates']} duplicates"
    kept = f"{counts['kept']:,} {counts['kind']}, {megabytes:.1f} MB"
    print(f"  {name}: {counts['read']:,} rows, {kept} ({lost})", flush=True)
    for title, found in (("dropped", "dropped"), ("left out", "notes"), ("fields not used", "unused")):
        if counts[found]:
            ranked = sorted(counts[found].items(), key=lambda item: -item[1])
            said = ", ".join(f"{what} ({times:,})" for what, times in ranked)
            print(f"  {name}: {title}: {said}", flush=True)
    for ratio, limit, what in (
        (counts["duplicates"] / (counts["kept"] + counts["duplicates"]), DUPLICATES_LIMIT, "documents are duplicates"),
        (counts["quarantined"] / counts["read"], FAULTS_LIMIT, f"rows are in quarantine/{name}.jsonl"),
        (counts["flagged"] / counts["kept"], FAULTS_LIMIT, f"documents are not in the script of {counts['language']}"),
    ):
        if ratio > limit:
            print(f"  warning: {ratio:.0%} of {name}'s {what}; look at them before training", flush=True)


def _advise(name: str, source: SourceConfig, counts: Facts) -> None:
    """Say that a file of text was read line by line where its lines are those of a page, not texts of their own."""
    words = counts["words"] / counts["kept"]
    if source.format is SourceFormat.text and source.unit is TextUnit.line and words < PAGE_LINE_WORDS:
        print(
            f"  {name}: every line is a document, of {words:.0f} words on average; for books and articles set "
            f"sources.{name}.unit=file, or unit=block for the text between blank lines",
            flush=True,
        )


def _map_here(function: Callable[[Any], Facts], items: Sequence[Any], cluster: ClusterConfig) -> Iterator[Facts]:  # noqa: ARG001
    yield from map(function, items)


def _map_on_ray(function: Callable[[Any], Facts], items: Sequence[Any], cluster: ClusterConfig) -> Iterator[Facts]:
    """Run the function on each item as a Ray Data task, in any order."""
    from lisan.session import answer, connect, map_items

    connect(cluster)
    yield from map_items(answer, items, fn_kwargs={"function": function}, **_resources(cluster, len(items)))


def _resources(cluster: ClusterConfig, num_tasks: int) -> dict[str, Any]:
    """As many tasks at once as there are workers: on two cores, eight processes spend their time importing."""
    import ray

    pool = ray.data.TaskPoolStrategy(size=min(cluster.num_workers, num_tasks))
    return {"compute": pool, "num_cpus": min(1.0, cluster.cpus_per_worker), "max_retries": cluster.max_failures}


def _remove_on_ray(
    keys_of: Callable[[int], pa.Table], numbers: Sequence[int], num_partitions: int, cluster: ClusterConfig
) -> pa.Table:
    """Bring equal keys together by hash, find the removals in every partition, gather them here."""
    import ray

    from lisan.session import in_one_sentence

    pieces = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    keys = pieces.map_batches(
        _read_keys, fn_kwargs={"keys_of": keys_of}, batch_format="pyarrow", **_resources(cluster, len(numbers))
    )
    together = keys.repartition(num_partitions, keys=["key_low"])
    removals = together.map_batches(
        find_removals, batch_format="pyarrow", batch_size=None, **_resources(cluster, num_partitions)
    )
    with in_one_sentence():
        tables = [table for table in removals.iter_batches(batch_size=None, batch_format="pyarrow") if table.num_rows]
    return pa.concat_tables(tables).cast(REMOVALS) if tables else REMOVALS.empty_table()


def _read_keys(batch: pa.Table, keys_of: Callable[[int], pa.Table]) -> pa.Table:
    return pa.concat_tables([KEYS.empty_table(), *(keys_of(number) for number in batch["number"].to_pylist())])


def _parents(config: CorpusConfig) -> tuple[Ref, ...]:  # noqa: ARG001  the signature of every stage
    return ()


def _inputs(config: CorpusConfig) -> Iterator[str]:
    """Yield the files of all sources; `check` refuses those that are not there, where a corpus is to be built."""
    for source in config.sources.values():
        for pattern in (*source.path, *source.pair_path):
            with suppress(LisanError, OSError):
                yield from find_files("", (pattern,))


CORPUS = Stage("build_corpus", Kind.corpus, CorpusConfig, _parents, build_corpus, check, inputs=_inputs)
