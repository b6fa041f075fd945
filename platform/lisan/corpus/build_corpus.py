"""The `build_corpus` stage: sources to a corpus, on Ray Data or in this process.

In: files or the micro-world. Out: parquet by kind, source and split, quarantine, and counts for every source. Always:
the same files for any number of workers; nothing read is lost without a count; an empty source stops the stage. Three
passes: pieces are read and staged, duplicates are found by key, parts are written. The only file of this room that
knows Ray; `lisan.recipes.jobs` names its `CORPUS`.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from lisan.cluster.map_items import map_items
from lisan.core.artifact import Draft, Kind, Ref
from lisan.core.errors import LisanError
from lisan.core.stage import ClusterConfig, Run, Stage
from lisan.core.storage import Location
from lisan.corpus.chain import read_piece
from lisan.corpus.config import CorpusConfig
from lisan.corpus.config_checks import check
from lisan.corpus.dedup.exact import KEYS, REMOVALS, find_removals, keep_survivors
from lisan.corpus.row_counts import Facts, report, sum_read, write_quarantine
from lisan.corpus.sources.files import describe_folders, find_files
from lisan.corpus.sources.find import Piece, plan_pieces
from lisan.corpus.write_shards import Part, read_keys, write_part
from lisan.records.kinds import RecordKind

__all__ = ["CORPUS", "CorpusConfig", "build_corpus", "check"]

PART_BYTES = 256 << 20
"Of text, before compression; one file of the corpus is about a third of it."
KEYS_PER_PARTITION = 300_000
"""Some 20 MB: Ray Data cuts larger blocks in two, and a key must not be on both sides of a cut. Up to one partition is
compared in this process (0.1 s); a shuffle costs 5 s and more."""
SAY_EVERY_S = 5.0


def build_corpus(config: CorpusConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    """Run the three passes and return the counts of the manifest."""
    staging = draft.location / "staging"
    for name, source in config.sources.items():
        for sentence in describe_folders((*source.path, *source.pair_path), source.format):
            print(f"  {name}: {sentence}", flush=True)
    pieces = [piece for name, source in config.sources.items() for piece in plan_pieces(name, source)]
    read = _watch(map_items(partial(read_piece, config=config, staging=staging), pieces, config.cluster), pieces)
    facts = sum_read(config.sources, read)
    removed = _find_duplicates(config, pieces, read, staging)
    parts = _plan_parts(config, pieces, read, removed)
    write = partial(write_part, dedup=config.dedup.exact, staging=staging, target=draft.location)
    for written in map_items(write, parts, config.cluster):
        _add_written(facts[written["source"]], written)
    write_quarantine(read, staging, draft.location)
    staging.delete()
    for name, counts in facts.items():
        report(name, config.sources[name], counts)
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


def _remove_on_ray(
    keys_of: Callable[[int], pa.Table], numbers: Sequence[int], num_partitions: int, cluster: ClusterConfig
) -> pa.Table:
    """Bring equal keys together by hash, find the removals in every partition, gather them here."""
    import ray

    from lisan.cluster.ray import in_one_sentence, task_options

    pieces = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    keys = pieces.map_batches(
        _read_keys, fn_kwargs={"keys_of": keys_of}, batch_format="pyarrow", **task_options(cluster, len(numbers))
    )
    together = keys.repartition(num_partitions, keys=["key_low"])
    removals = together.map_batches(
        find_removals, batch_format="pyarrow", batch_size=None, **task_options(cluster, num_partitions)
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
                yield from find_files("", (pattern,), source.format)


CORPUS = Stage("build_corpus", Kind.corpus, CorpusConfig, _parents, build_corpus, check, inputs=_inputs)
