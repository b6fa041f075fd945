"""The `expand_tokenizer` stage: learn pieces on a corpus and add them to a base without moving one of its ids.

In: a corpus, and a base tokenizer or none. Out: a `tokenizer` artifact (see tokenizer.py) with the old pieces of every
new one. Always: text without a character of the target scripts is encoded to the same ids as before; a tokenizer that
breaks this, or that gains too little on its target, is not written. Jobs run it through `TOKENIZER`.
"""

import heapq
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError
from lisan.core.seed import derive_seed
from lisan.core.stage import Run, Stage, StageConfig
from lisan.corpus.records import Document, RecordKind
from lisan.tokens import bpe, tokenizer
from lisan.tokens.gates import Gates, HeldOut, check_gates, compare, describe, measure_groups
from lisan.tokens.merges import learn_merges, script
from lisan.tokens.tokenizer import Expansion, load_expansion, load_tokenizer

__all__ = ["TOKENIZER", "Expansion", "Gates", "TokenizerConfig", "load_expansion", "load_tokenizer"]

TEMPLATE_MARKS = {"chatml": ("<|im_start|>", "<|im_end|>")}


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerConfig(StageConfig):
    base: str | None = None
    "tokenizer/name@version, model/name@version, a local folder or a hub id; null learns a new tokenizer."
    corpus: str
    "corpus/name@version"
    sources: tuple[str, ...]
    "Document sources to learn on: the target language's, or everything a new tokenizer shall cover."
    protected_sources: tuple[str, ...] = ()
    "Document sources of languages that must not change, measured before and after."
    num_pieces: int
    "New pieces wanted; of a new tokenizer, all its pieces with the 256 bytes and the special tokens."
    scripts: tuple[str, ...] = ("arabic",)
    "Words in the Unicode names of the target's characters: arabic, tifinagh, devanagari; a new tokenizer covers all."
    special_tokens: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
    "A new tokenizer's first ids; a base is given those it lacks, but no second end-of-text or padding token."
    eos_token: str = "<|endoftext|>"
    "Ends a document, unless the base declares its own; also the token a text may begin with."
    pad_token: str = "<|pad|>"
    chat_template: str = "chatml"
    "A file of tokens/templates, or `base` to keep the base's own."
    min_count: int = 2
    "A pair that occurs less often in the sample is never merged."
    max_bytes: int = 100_000_000
    "UTF-8 bytes of text to learn on, drawn at random from all sources together."
    measured_split: str = "validation"
    "Split of the corpus on which fertility is measured and the gates are checked."
    measured_bytes: int = 2_000_000
    "Bytes to measure a source on."
    pad_to_multiple: int = 128
    "Embedding rows are rounded up to it."
    seed: int = 0
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "measured_bytes", "pad_to_multiple", "min_count", "num_pieces"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.sources:
            raise ConfigError("sources must name at least one document source of the corpus to learn on")
        roles = () if self.base else (self.eos_token, self.pad_token)
        needed = (*TEMPLATE_MARKS.get(self.chat_template, ()), *roles)
        if missing := [token for token in needed if token not in self.special_tokens]:
            raise ConfigError(f"special_tokens must hold {missing[0]}, got {', '.join(self.special_tokens) or 'none'}")
        if self.base is None:
            self._check_new()

    def _check_new(self) -> None:
        least = 256 + len(self.special_tokens)
        if self.num_pieces < least:
            raise ConfigError(
                f"num_pieces of a new tokenizer counts 256 bytes and {len(self.special_tokens)} special tokens, "
                f"so that it must be >= {least}, got {self.num_pieces}"
            )
        if self.gates.min_factor > 1:
            raise ConfigError(f"gates.min_factor is {self.gates.min_factor:g} but base is null; set a base or drop it")


@dataclass(frozen=True, slots=True)
class Base:
    """An opened base tokenizer."""

    name: str
    folder: Path
    spec: bpe.Spec
    hash: str


def expand_tokenizer(config: TokenizerConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    base = open_base(config, draft.parents)
    corpus = draft.parent(Kind.corpus)
    texts = sample_texts(_documents(corpus, "train", config.sources), config.max_bytes, config.seed)
    if not texts:
        raise DataError(f"{corpus.ref} holds no train documents of {', '.join(config.sources)}; name others in sources")
    spec, pieces = learn_new(config, texts) if base is None else grow_base(config, base, texts)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expansion = write(config, base, spec, pieces, folder)
        facts = measure_all(config, corpus, base, folder)
        draft.location.upload(folder)
    run.log_file("pieces.txt", bpe.list_pieces(spec, expansion.new_ids).encode())
    return {
        **facts,
        "num_new": len(expansion.new_ids),
        "num_ids": expansion.num_ids,
        "size": expansion.size,
        "hash": expansion.hash,
        "sampled_bytes": sum(len(text.encode()) for text in texts),
    }


def open_base(config: TokenizerConfig, parents: Iterable[Artifact]) -> Base | None:
    """Read the base's tokenizer.json and refuse what is not byte-level BPE."""
    if config.base is None:
        return None
    owners = [parent for parent in parents if str(parent.ref) == config.base]
    folder = tokenizer.tokenizer_folder(str(owners[0].location.local_folder()) if owners else config.base)
    data = (folder / tokenizer.TOKENIZER).read_bytes()
    try:
        spec = json.loads(data)
    except ValueError as error:
        raise DataError(f"base {config.base}: {tokenizer.TOKENIZER} is not JSON ({error}); fetch it again") from error
    bpe.check_byte_level(spec, config.base)
    return Base(config.base, folder, spec, tokenizer.digest(data))


def sample_texts(documents: Iterable[Document], max_bytes: int, seed: int) -> list[str]:
    """Draw documents at random up to `max_bytes`, in one pass: those with the lowest seeded hash of their id are kept.

    The choice does not depend on the order in which the corpus is read. A single document over the limit is cut.
    """
    kept: list[tuple[int, str, str]] = []
    size = 0
    for document in documents:
        text = document.text.encode()[:max_bytes].decode("utf-8", "ignore")
        heapq.heappush(kept, (-derive_seed(seed, "sample", document.source, document.id), document.id, text))
        size += len(text.encode())
        while size > max_bytes:
            size -= len(heapq.heappop(kept)[2].encode())
    return [text for _, _, text in sorted(kept, reverse=True) if text]


def learn_new(config: TokenizerConfig, texts: list[str]) -> tuple[bpe.Spec, dict[int, tuple[int, ...]]]:
    spec = bpe.learn(texts, config.num_pieces, config.special_tokens, config.min_count)
    _say_shortage(config, bpe.first_free_id(spec))
    return spec, {}


def grow_base(config: TokenizerConfig, base: Base, texts: list[str]) -> tuple[bpe.Spec, dict[int, tuple[int, ...]]]:
    """Continue the base's merges on the target's words, then append the special tokens that it lacks."""
    target, start = script(config.scripts), time.monotonic()
    words = bpe.count_words(base.spec, texts, target)
    if not words:
        scripts = " or ".join(config.scripts)
        raise DataError(f"{', '.join(config.sources)} holds no {scripts} word; set scripts to the target's own")
    _say(f"{words.total():,} words of the target, {len(words):,} distinct", start)
    merges = learn_merges(
        bpe.segment(base.spec, words),
        list(words.values()),
        bpe.pieces_by_id(base.spec),
        config.num_pieces,
        target.owns,
        config.min_count,
    )
    _say(f"{len(merges):,} pieces learned", start)
    _say_shortage(config, len(merges))
    return bpe.grow(base.spec, merges, missing_tokens(config, base))


def missing_tokens(config: TokenizerConfig, base: Base) -> list[str]:
    """Return the special tokens that the base lacks; a role that it fills itself needs no second token."""
    declared = tokenizer.read_roles(base.folder)
    filled = {config.eos_token: "eos_token", config.pad_token: "pad_token"}
    known = {*base.spec["model"]["vocab"], *(token["content"] for token in base.spec["added_tokens"])}
    wanted = dict.fromkeys((*config.special_tokens, config.eos_token, config.pad_token))
    return [token for token in wanted if token not in known and filled.get(token) not in declared]


def _say_shortage(config: TokenizerConfig, found: int) -> None:
    if found < config.num_pieces:
        wanted = f"num_pieces={config.num_pieces:,}"
        print(f"  the sample supports only {found:,} of {wanted} at min_count={config.min_count}", flush=True)


def _say(what: str, start: float) -> None:
    print(f"  {what}, {time.monotonic() - start:.1f} s", flush=True)


def write(
    config: TokenizerConfig, base: Base | None, spec: bpe.Spec, pieces: dict[int, tuple[int, ...]], folder: Path
) -> Expansion:
    """Write the folder that `AutoTokenizer` loads, and what was added."""
    roles = {"bos_token": config.eos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    if base is not None:
        roles |= tokenizer.read_roles(base.folder)
    template = tokenizer.read_template(config.chat_template, base.folder if base else None)
    base_size = bpe.first_free_id(base.spec) if base else 0
    num_ids = bpe.first_free_id(spec)
    expansion = Expansion(
        method="continued_bpe" if base else "bpe",
        base=base.name if base else None,
        base_hash=base.hash if base else None,
        base_size=base_size,
        num_ids=num_ids,
        size=-(-num_ids // config.pad_to_multiple) * config.pad_to_multiple,
        new_ids=tuple(range(base_size, num_ids)),
        pieces=pieces,
        hash=tokenizer.write_folder(folder, spec, roles, template),
    )
    tokenizer.write_expansion(folder, expansion)
    return expansion


def measure_all(config: TokenizerConfig, corpus: Artifact, base: Base | None, folder: Path) -> dict[str, Any]:
    """Measure on text that was not learned on; with a base, compare with it and refuse what breaks a gate."""
    groups = (("target", config.sources), ("protected", config.protected_sources))
    held_out = [_hold_out(config, corpus, group, source) for group, sources in groups for source in sources]
    after = load_tokenizer(folder)
    if base is None:
        return describe(measure_groups(after, held_out), "after")
    facts = compare(load_tokenizer(base.folder), after, held_out, script(config.scripts))
    check_gates(config.gates, facts)
    return facts


def _hold_out(config: TokenizerConfig, corpus: Artifact, group: str, source: str) -> HeldOut:
    documents = list(_documents(corpus, config.measured_split, (source,)))
    texts = sample_texts(documents, config.measured_bytes, config.seed)
    if not texts:
        raise DataError(
            f"{corpus.ref} holds no {config.measured_split} documents of {source} to measure on; "
            "set measured_split=train, or keep some of them apart when the corpus is built"
        )
    return HeldOut(group, source, documents[0].language, texts)


def _documents(corpus: Artifact, split: str, sources: tuple[str, ...]) -> Iterator[Document]:
    from lisan.corpus.reader import read_records

    records = read_records(corpus, RecordKind.documents, split, sources)
    return (record for record in records if isinstance(record, Document))


def check(config: TokenizerConfig, store: Store) -> None:
    """Refuse a base of another kind, and sources, a template or a script that do not exist, before a text is read."""
    from lisan.corpus.reader import shard_paths

    parents = [store.open(ref) for ref in _parents(config)]
    measured = config.sources + config.protected_sources
    for split, sources in (("train", config.sources), (config.measured_split, measured)):
        for source in sources:
            shard_paths(parents[0], RecordKind.documents, source, split)
    base = open_base(config, parents)
    tokenizer.read_template(config.chat_template, base.folder if base else None)
    script(config.scripts)


def _parents(config: TokenizerConfig) -> tuple[Ref, ...]:
    base = (Ref.parse(config.base),) if config.base and Ref.looks_like(config.base) else ()
    return (Ref.parse(config.corpus, Kind.corpus), *base)


TOKENIZER = Stage("expand_tokenizer", Kind.tokenizer, TokenizerConfig, _parents, expand_tokenizer, check)
