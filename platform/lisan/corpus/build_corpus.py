"""The `build_corpus` stage: sources to a corpus, on Ray Data or in this process.

Reads files or the micro-world in read tasks, stages their records, finds exact duplicates by key, and writes shards by kind,
source and split, with quarantine and counts for every source. The files are the same for any number of workers, every
row is counted, and an empty source stops the stage.
"""

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
from lisan.core.progress import ItemProgress
from lisan.core.stage import ClusterConfig, Run, Stage
from lisan.core.storage import Location
from lisan.corpus.chain import run_read_task
from lisan.corpus.config import CorpusConfig
from lisan.corpus.config_checks import check
from lisan.corpus.dedup.exact import KEYS, REMOVALS, find_removals, keep_survivors
from lisan.corpus.row_counts import Counts, report, sum_read, write_quarantine
from lisan.corpus.sources.files import describe_folders, find_files
from lisan.corpus.sources.read_tasks import ReadTask, plan_read_tasks
from lisan.corpus.write_shards import Shard, read_keys, write_shard
from lisan.records.kinds import RecordKind

__all__ = ["CORPUS", "CorpusConfig", "build_corpus", "check"]

SHARD_BYTES = 256 << 20
"Text bytes per shard before compression; the file is about a third of it."
KEYS_PER_PARTITION = 300_000
"""About 20 MB: Ray Data cuts larger blocks in two, which would separate equal keys. One partition or less is compared
in this process (0.1 s); a shuffle costs 5 s and more."""


def build_corpus(config: CorpusConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    """Run the three passes and return the counts of the manifest."""
    staging = draft.location / "staging"
    for name, source in config.sources.items():
        for sentence in describe_folders((*source.path, *source.pair_path), source.format):
            print(f"  {name}: {sentence}", flush=True)
    tasks = [task for name, source in config.sources.items() for task in plan_read_tasks(name, source)]
    read = _collect_counts(
        map_items(partial(run_read_task, config=config, staging=staging), tasks, config.cluster), tasks, run
    )
    by_source = sum_read(config.sources, read)
    removed = _find_duplicates(config, tasks, read, staging)
    shards = _plan_shards(config, tasks, read, removed)
    write = partial(write_shard, dedup=config.dedup.exact, staging=staging, target=draft.location)
    for written in map_items(write, shards, config.cluster):
        _add_written(by_source[written["source"]], written)
    write_quarantine(read, staging, draft.location)
    staging.delete()
    for name, counts in by_source.items():
        report(name, config.sources[name], counts)
    run.log_metrics({f"kept/{name}": counts["kept"] for name, counts in by_source.items()})
    keys = ("kept", "duplicates", "quarantined", "bytes", "words")
    totals = {key: sum(counts[key] for counts in by_source.values()) for key in keys}
    return {"sources": by_source, "records": totals.pop("kept"), **totals}


def _collect_counts(results: Iterator[Counts], tasks: Sequence[ReadTask], run: Run) -> list[Counts]:
    """Return the counts of read tasks in task order, with progress on the way."""
    order = {(task.source, task.index): number for number, task in enumerate(tasks)}
    progress = ItemProgress("read", "tasks", len(tasks), run.log_metrics)
    done: list[Counts] = []
    for counts in results:
        done.append(counts)
        progress.add()
    return sorted(done, key=lambda counts: order[counts["source"], counts["index"]])


def _find_duplicates(
    config: CorpusConfig, tasks: Sequence[ReadTask], read: Sequence[Counts], staging: Location
) -> dict[int, np.ndarray]:
    """Return the row numbers to remove by task number."""
    kinds = [config.sources[task.source].kind for task in tasks]
    documents = [number for number, kind in enumerate(kinds) if kind is RecordKind.documents]
    if not config.dedup.exact or not documents:
        return {}
    keys_of = partial(_surviving_keys, tasks=tasks, staging=staging)
    num_keys = sum(read[number].get("records", 0) for number in documents)
    if config.cluster.num_workers and num_keys > KEYS_PER_PARTITION:
        removals = _remove_on_ray(keys_of, documents, 1 + num_keys // KEYS_PER_PARTITION, config.cluster)
    else:
        removals = find_removals(pa.concat_tables([keys_of(number) for number in documents]))
    number, row = (removals[name].to_numpy() for name in REMOVALS.names)
    return {int(task): np.sort(row[number == task]) for task in np.unique(number)}


def _surviving_keys(number: int, tasks: Sequence[ReadTask], staging: Location) -> pa.Table:
    return keep_survivors(read_keys(staging, tasks[number].source, tasks[number].index, number))


def _plan_shards(
    config: CorpusConfig, tasks: Sequence[ReadTask], read: Sequence[Counts], removed: Mapping[int, np.ndarray]
) -> list[Shard]:
    """Group adjacent read tasks of a source into shards of about `SHARD_BYTES`."""
    groups: dict[str, list[list[int]]] = defaultdict(list)
    room = 0
    for number, task in enumerate(tasks):
        size = read[number].get("bytes", 0)
        if not groups[task.source] or room < size:
            groups[task.source].append([])
            room = SHARD_BYTES
        groups[task.source][-1].append(number)
        room -= size
    return [
        Shard(
            name,
            config.sources[name].kind,
            index,
            tuple(tasks[number].index for number in numbers),
            {tasks[number].index: removed[number] for number in numbers if number in removed},
        )
        for name, numbered in groups.items()
        for index, numbers in enumerate(numbered)
    ]


def _add_written(total: Counts, written: Counts) -> None:
    total["duplicates"] += written["duplicates"]
    for split, counts in written["splits"].items():
        of_split = total["splits"].setdefault(split, {"records": 0, "bytes": 0, "words": 0})
        for key, value in counts.items():
            of_split[key] += value
            total["kept" if key == "records" else key] += value


def _remove_on_ray(
    keys_of: Callable[[int], pa.Table], numbers: Sequence[int], num_partitions: int, cluster: ClusterConfig
) -> pa.Table:
    """Bring equal keys together by hash, find the removals in every partition, gather them here."""
    import ray

    from lisan.cluster.ray import in_one_sentence, task_options

    tasks = ray.data.from_items([{"number": number} for number in numbers], override_num_blocks=len(numbers))
    keys = tasks.map_batches(
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
    """Yield the existing files of all sources; `check` refuses missing ones."""
    for source in config.sources.values():
        for pattern in (*source.path, *source.pair_path):
            with suppress(LisanError, OSError):
                yield from find_files("", (pattern,), source.format)


CORPUS = Stage("build_corpus", Kind.corpus, CorpusConfig, _parents, build_corpus, check, inputs=_inputs)
