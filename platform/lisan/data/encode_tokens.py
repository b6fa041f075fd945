"""The `encode_tokens` stage: records to packed rows of token ids, on Ray Data or in this process.

In: a corpus and a tokenizer. Out: a `tokens` artifact (see rows.py). Always: the same rows for any number of
workers, because a block of records is encoded and packed by itself and written under its own number. One process a core
is the fast way: the threads of one tokenizer wait for each other at its word cache.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lisan.cluster.map_items import map_items
from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.references import find_named, local_path, parse_refs
from lisan.core.stage import Run, Stage
from lisan.core.storage import Location
from lisan.corpus.reader import list_sources, list_splits, shard_paths
from lisan.data.config import EncodeConfig
from lisan.data.corpus_blocks import Block, RecordBlocks, list_shards, plan_blocks, read_block
from lisan.data.dropped_records import print_dropped_records
from lisan.data.examples import count_spelt_controls_in, encode_table
from lisan.data.packing import PackingCounts, pack
from lisan.data.rows import HIGHEST_ID, write_rows
from lisan.data.segments import estimate_rows
from lisan.records.kinds import RecordKind
from lisan.tokenizer.chat.chat_template import template_hash
from lisan.tokenizer.tokenizer import check_ids, open_tokenizer, read_vocabulary_size, tokenizer_hash


def encode_tokens(config: EncodeConfig, draft: Draft, run: Run) -> Mapping[str, Any]:  # noqa: ARG001  a stage is called with it
    corpus = draft.parent(Kind.corpus)
    languages = list_sources(corpus, config.kind)
    chosen = _choose_sources(config, corpus)
    job = _Job(config, locate_tokenizer(config, draft.parents), corpus.location, draft.location)
    found = _store_rows(job, corpus, chosen) if config.store_rows else _estimate_rows(job, corpus, chosen)
    for source, counts in found.items():
        print_dropped_records(source, counts, config.context_length, config.packing.overflow)
    tokenizer = open_tokenizer(job.tokenizer)
    highest = max(facts.get(HIGHEST_ID, 0) for facts in found.values())
    check_ids(str(draft.ref), highest, read_vocabulary_size(job.tokenizer), tokenizer)
    is_chat = config.kind is not RecordKind.documents
    rows, tokens, targets = (sum(facts[key] for facts in found.values()) for key in ("rows", "tokens", "targets"))
    return {
        "sources": {source: {"language": languages[source], **found[source]} for source in chosen},
        "rows": rows,
        "tokens": tokens,
        "targets": targets,
        "padding_ratio": _padding(rows, tokens, config),
        "context_length": config.context_length,
        "record_kind": config.kind.value,
        "vocabulary_size": len(tokenizer),
        "tokenizer_hash": tokenizer_hash(job.tokenizer),
        **({"template_hash": template_hash(tokenizer)} if is_chat else {}),
        **({HIGHEST_ID: highest} if config.store_rows else {"block_records": config.block_records}),
    }


def _choose_sources(config: EncodeConfig, corpus: Artifact) -> tuple[str, ...]:
    """Return the sources that have the split; the others are said, and DataError where none has it."""
    named = config.sources or tuple(list_sources(corpus, config.kind))
    if not named:
        held = ", ".join(kind for kind in RecordKind if list_sources(corpus, kind))
        raise DataError(
            f"{corpus.ref} holds {held} and no {config.kind}; set kind to one of these, or build another corpus"
        )
    chosen = tuple(name for name in named if config.split in list_splits(corpus, config.kind, name))
    lacking = [name for name in named if name not in chosen]
    if not chosen or not all(list_splits(corpus, config.kind, name) for name in lacking):
        for name in lacking:
            shard_paths(corpus, config.kind, name, config.split)
    if lacking:
        print(f"  without {', '.join(lacking)}: no split {config.split} there", flush=True)
    return chosen


def _store_rows(job: "_Job", corpus: Artifact, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Encode and pack every block; return the facts of each source."""
    config = job.config
    blocks = [block for source in sources for block in plan_blocks(corpus, config.kind, source, config.split)]
    counts = _watch(_run(job, blocks), len(blocks))
    return {source: _sum_source(source, counts, config, corpus.ref) for source in sources}


def _estimate_rows(job: "_Job", corpus: Artifact, sources: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Look at a sample of every source, and note what its rows will be made from."""
    config = job.config
    parts = list_shards(corpus, config.kind, sources, config.split)
    blocks = RecordBlocks(corpus.location, config.kind, parts, config.block_records)
    counts = estimate_rows(blocks, open_tokenizer(job.tokenizer), config.context_length, config.packing)
    if empty := [source for source in sources if not counts[source]["rows"]]:
        raise DataError(
            f"{corpus.ref} gives no rows for {empty[0]} ({config.kind}, {config.split}); leave it out of sources"
        )
    return {source: {**counts[source], "corpus_shards": parts[source]} for source in sources}


def _watch(results: Iterable[tuple[Block, dict[str, int]]], num_blocks: int) -> dict[Block, dict[str, int]]:
    """Collect the counts of blocks, saying a line for each."""
    counts: dict[Block, dict[str, int]] = {}
    start, total = time.monotonic(), 0
    for block, found in results:
        counts[block] = found
        total += found["tokens"]
        print(
            f"  {len(counts)}/{num_blocks} {block.source}: {found['rows']:,} rows, {total:,} tokens, "
            f"{total / (time.monotonic() - start):,.0f} tokens/s",
            flush=True,
        )
    return counts


def _sum_source(
    source: str, counts: Mapping[Block, Mapping[str, int]], config: EncodeConfig, corpus: Ref
) -> dict[str, Any]:
    """Add the counts of a source's blocks up; DataError when no row came of them."""
    mine = sorted((block for block in counts if block.source == source), key=lambda block: block.index)
    total = sum((Counter(counts[block]) for block in mine), Counter[str]())
    if not total["items"]:
        raise DataError(
            f"{corpus} holds no record of {source} ({config.kind}, {config.split}); leave it out of sources, or build the "
            "corpus with more of it"
        )
    if not total["rows"]:
        raise DataError(
            f"{corpus} gives no rows for {source} ({config.kind}, {config.split}); every record was dropped "
            f"or longer than context_length={config.context_length}"
        )
    return {
        **{key: total[key] for key in counts[mine[0]]},
        HIGHEST_ID: max(counts[block][HIGHEST_ID] for block in mine),
        "padding_ratio": _padding(total["rows"], total["tokens"], config),
        "shards": {block.shard: counts[block]["rows"] for block in mine if counts[block]["rows"]},
    }


def _padding(rows: int, tokens: int, config: EncodeConfig) -> float:
    return round(1 - tokens / (rows * config.context_length), 5)


@dataclass(frozen=True)
class _Job:
    """Everything that a process needs to encode a block."""

    config: EncodeConfig
    tokenizer: Location | str
    corpus: Location
    out: Location

    def __call__(self, block: Block) -> dict[str, int]:
        tokenizer = open_tokenizer(self.tokenizer)
        counts = PackingCounts()
        table = read_block(self.corpus, block, self.config.kind)
        counts.spelt_controls = count_spelt_controls_in(tokenizer, table, self.config.kind)
        items = encode_table(tokenizer, table, self.config.kind)
        rows = pack(items, self.config.context_length, self.config.packing, counts)
        place = self.out / "rows" / block.source / block.shard
        written = write_rows(place, rows, self.config.context_length)
        return {**written, **asdict(counts)}

    def encode(self, block: Block) -> tuple[Block, dict[str, int]]:
        return block, self(block)


def _run(job: _Job, blocks: Sequence[Block]) -> Iterator[tuple[Block, dict[str, int]]]:
    """Yield every block with its counts; Ray starts with the largest, so that no worker ends on a long one alone."""
    cluster = job.config.cluster
    if cluster.num_workers:
        blocks = sorted(blocks, key=lambda block: block.num_bytes, reverse=True)
    yield from map_items(job.encode, blocks, cluster)


def locate_tokenizer(config: EncodeConfig, parents: Iterable[Artifact]) -> Location | str:
    """Return the place of the tokenizer for every node: an artifact's location, or the name in the config."""
    for parent in parents:
        if parent.ref.kind in (Kind.tokenizer, Kind.model):
            return parent.location
    return config.tokenizer


def tokenizer_of(tokens: Artifact) -> Location | str:
    """Return where the tokenizer of a tokens artifact lies; DataError when it is no longer the one that encoded it."""
    name: str = tokens.config["tokenizer"]
    place = find_named(Store(tokens.location.root), name)
    if tokenizer_hash(place) != tokens.facts["tokenizer_hash"]:
        raise DataError(f"{tokens.ref} was encoded with another {name}; encode it again")
    return place


def _parents(config: EncodeConfig) -> tuple[Ref, ...]:
    return (Ref.parse(config.corpus, Kind.corpus), *parse_refs(config.tokenizer))


def _check(config: EncodeConfig, store: Store) -> None:  # noqa: ARG001  the signature of every check
    path = local_path(config.tokenizer)
    if config.cluster.num_nodes > 1 and path is not None and path.is_dir():
        raise ConfigError(
            f"tokenizer {config.tokenizer} is a folder of this machine but cluster.num_nodes is {config.cluster.num_nodes}; "
            "name an artifact or a hub id, which every node can fetch"
        )


TOKENS = Stage(
    "encode_tokens",
    Kind.tokens,
    EncodeConfig,
    _parents,
    encode_tokens,
    _check,
    inputs=lambda config: (config.tokenizer,),
)
