"""The `encode_tokens` stage: records to packed rows of token ids, on Ray Data or in this process.

In: a corpus and a tokenizer. Out: a `tokens` artifact (see rows.py). Always: the same rows whatever the number of
workers, because a block of records is encoded and packed by itself and written under its own number.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from typing import Any

import pyarrow.parquet as pq

from lisan.core.artifact import Artifact, Draft, Kind, Ref
from lisan.core.errors import ConfigError, DataError
from lisan.core.stage import Run, Stage, StageConfig
from lisan.core.storage import Location
from lisan.corpus.reader import list_sources, shard_paths
from lisan.corpus.records import RecordKind, from_table
from lisan.tokens.examples import encode_records
from lisan.tokens.packing import Overflow, PackingConfig, PackingCounts, pack
from lisan.tokens.rows import write_rows
from lisan.tokens.tokenizer import TOKENIZER, digest, load_tokenizer, tokenizer_folder


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig(StageConfig):
    corpus: str
    "corpus/name@version"
    tokenizer: str
    "tokenizer/name@version, model/name@version, a local folder or a hub id"
    kind: RecordKind = RecordKind.documents
    sources: tuple[str, ...] = ()
    "Sources of the corpus; empty takes all that hold this kind of record."
    split: str = "train"
    context_length: int = 1024
    "Tokens per row."
    packing: PackingConfig = field(default_factory=PackingConfig)

    def __post_init__(self) -> None:
        if self.context_length < 8:
            raise ConfigError(f"context_length must be >= 8, got {self.context_length}")
        if self.kind is RecordKind.questions:
            raise ConfigError("kind=questions is for evaluation and is never trained on")
        if self.kind is not RecordKind.documents and self.packing.overflow is Overflow.split:
            raise ConfigError(f"packing.overflow=split cuts a {self.kind} record in two; set packing.overflow=drop")


COUNTS = ("rows", "tokens", "targets", "documents", "items", "dropped", "truncated", "split")
"What encoding a block counts."


@dataclass(frozen=True, slots=True)
class Block:
    """One shard of the corpus, to become one shard of rows."""

    source: str
    index: int
    path: str
    "Below the corpus."


def encode_tokens(config: EncodeConfig, draft: Draft, run: Run) -> Mapping[str, Any]:  # noqa: ARG001  a stage is called with it
    corpus = draft.parent(Kind.corpus)
    languages = list_sources(corpus, config.kind)
    chosen = config.sources or tuple(languages)
    if not chosen:
        raise DataError(f"{corpus.ref} holds no {config.kind}")
    blocks = [
        Block(source, index, f"{config.kind}/{source}/{config.split}/{path.rpartition('/')[2]}")
        for source in chosen
        for index, path in enumerate(shard_paths(corpus, config.kind, source, config.split))
    ]
    job = _Job(config, tokenizer_place(config, draft.parents), corpus.location, draft.location)
    done: dict[str, dict[str, Any]] = {source: {"language": languages[source], "shards": {}} for source in chosen}
    start, total = time.monotonic(), 0
    for count, (block, counts) in enumerate(_run(job, blocks), 1):
        _add(done[block.source], block, counts)
        total += counts["tokens"]
        print(
            f"  {count}/{len(blocks)} {block.source}: {counts['rows']:,} rows, {total:,} tokens, "
            f"{total / (time.monotonic() - start):,.0f} tokens/s",
            flush=True,
        )
    empty = [source for source, counts in done.items() if not counts.get("rows")]
    if empty:
        raise DataError(
            f"{corpus.ref} gives no rows for {empty[0]} ({config.kind}, {config.split}); every record was dropped "
            f"or longer than context_length={config.context_length}"
        )
    tokenizer = open_tokenizer(job.tokenizer)
    rows, tokens = (sum(counts[key] for counts in done.values()) for key in ("rows", "tokens"))
    return {
        "sources": done,
        "rows": rows,
        "tokens": tokens,
        "targets": sum(counts["targets"] for counts in done.values()),
        "padding_ratio": round(1 - tokens / (rows * config.context_length), 5),
        "context_length": config.context_length,
        "record_kind": config.kind.value,
        "vocabulary_size": len(tokenizer),
        "tokenizer_hash": tokenizer_hash(job.tokenizer),
    }


@dataclass(frozen=True)
class _Job:
    """What a block needs to be encoded anywhere."""

    config: EncodeConfig
    tokenizer: str
    corpus: Location
    out: Location

    def __call__(self, block: Block) -> dict[str, int]:
        tokenizer = open_tokenizer(self.tokenizer)
        file = self.corpus / block.path
        table = pq.read_table(file.full_path, filesystem=file.file_system)
        counts = PackingCounts()
        items = encode_records(tokenizer, from_table(table, self.config.kind))
        rows = pack(items, self.config.context_length, self.config.packing, counts)
        place = self.out / "rows" / block.source / f"shard-{block.index:05d}.arrow"
        written = write_rows(place, rows, self.config.context_length, tokenizer.pad_token_id or 0)
        return {**written, **asdict(counts)}


def _run(job: _Job, blocks: list[Block]) -> Iterator[tuple[Block, dict[str, int]]]:
    if job.config.cluster.num_workers == 0:
        yield from ((block, job(block)) for block in blocks)
        return
    import ray

    from lisan.session import connect

    connect(job.config.cluster)
    dataset = ray.data.from_items([{"place": place} for place in range(len(blocks))], override_num_blocks=len(blocks))
    encoded = dataset.map(_encode_row, fn_kwargs={"job": job, "blocks": blocks}, num_cpus=0.5)
    for row in encoded.iter_rows():
        if error := row.pop("error"):
            raise DataError(error)
        yield blocks[row.pop("place")], row


def _encode_row(row: dict[str, Any], job: _Job, blocks: list[Block]) -> dict[str, Any]:
    """Encode one block; what users can cause travels as a sentence, without Ray's trace around it."""
    counts = dict.fromkeys(COUNTS, 0)
    try:
        return {"place": row["place"], "error": "", **job(blocks[row["place"]])}
    except DataError as error:
        return {"place": row["place"], "error": f"{blocks[row['place']].source}: {error}", **counts}


def _add(total: dict[str, Any], block: Block, counts: dict[str, int]) -> None:
    for key, value in counts.items():
        total[key] = total.get(key, 0) + int(value)
    if counts["rows"]:
        total["shards"][f"shard-{block.index:05d}.arrow"] = int(counts["rows"])


def tokenizer_place(config: EncodeConfig, parents: Iterable[Artifact]) -> str:
    for parent in parents:
        if parent.ref.kind in (Kind.tokenizer, Kind.model):
            return str(parent.location.local_folder())
    return config.tokenizer


@lru_cache(maxsize=2)
def open_tokenizer(place: str) -> Any:
    return load_tokenizer(place)


def tokenizer_hash(place: str) -> str:
    """Return the sha256 of the tokenizer.json of a local folder or hub id."""
    return digest((tokenizer_folder(place) / TOKENIZER).read_bytes())


def _parents(config: EncodeConfig) -> tuple[Ref, ...]:
    tokenizer = (Ref.parse(config.tokenizer),) if Ref.looks_like(config.tokenizer) else ()
    return (Ref.parse(config.corpus, Kind.corpus), *tokenizer)


TOKENS = Stage("encode_tokens", Kind.tokens, EncodeConfig, _parents, encode_tokens)
