"""The `expand_tokenizer` stage: learn pieces on a corpus and add them to a base without moving one of its ids.

In: a corpus, and a base tokenizer or none. Out: a `tokenizer` artifact (see tokenizer.py) with the old pieces of every
new one. Always: text without a character of the target scripts is encoded to the same ids as before; a tokenizer that
breaks this, or that gains too little on its target, is not written. Jobs run it through `TOKENIZER`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import DataError
from lisan.core.integrity import fetch_folder
from lisan.core.references import parse_refs
from lisan.core.stage import Run, Stage
from lisan.records.kinds import RecordKind
from lisan.records.records import Document
from lisan.tokenizer import tokenizer
from lisan.tokenizer.chat import template_source
from lisan.tokenizer.expand import bpe
from lisan.tokenizer.expand.append_pieces import OldPieces
from lisan.tokenizer.expand.base import Base, claim_tokens, open_base
from lisan.tokenizer.expand.config import TokenizerConfig
from lisan.tokenizer.expand.gates import HeldOut, check_gates, compare, describe, measure_groups, summarise
from lisan.tokenizer.expand.neighbours import write_neighbours
from lisan.tokenizer.expand.tokenizer_families import list_pieces
from lisan.tokenizer.expand.vocabulary_size import count_target_words, cut_to_size, learn_pieces, learning_curve
from lisan.tokenizer.script import script
from lisan.tokenizer.text_sample import sample_texts
from lisan.tokenizer.tokenizer import Expansion, load_tokenizer
from lisan.tokenizer.tokenizer_json import Definition, first_free_id


class ExpandedTokenizer(NamedTuple):
    """A tokenizer, the base's pieces of every new id, and the learning curve (empty without a base)."""

    definition: Definition
    pieces: OldPieces
    curve: list[list[float]]


def expand_tokenizer(config: TokenizerConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    base = open_parent(config, draft.parents)
    corpus = draft.parent(Kind.corpus)
    texts = sample_texts(_documents(corpus, "train", config.sources), config.max_bytes, config.seed)
    if not texts:
        raise DataError(f"{corpus.ref} holds no train documents of {', '.join(config.sources)}; name others in sources")
    expanded = learn_tokenizer(config, texts) if base is None else expand_base(config, base, texts)
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        expansion = write(config, base, expanded, folder)
        facts = measure_all(config, corpus, base, folder)
        if config.neighbours:
            both = _documents(corpus, "train", config.sources + config.protected_sources)
            facts |= write_neighbours(folder, sample_texts(both, config.max_bytes, config.seed), config.neighbours)
        draft.location.upload(folder)
    family = base.family if base else bpe
    run.log_file("pieces.txt", list_pieces(family, expanded.definition, expansion.new_ids).encode())
    return {
        **facts,
        "learning_curve": expanded.curve,
        "num_new": len(expansion.new_ids),
        "num_ids": expansion.num_ids,
        "size": expansion.size,
        "hash": expansion.hash,
        "sampled_bytes": sum(len(text.encode()) for text in texts),
    }


def open_parent(config: TokenizerConfig, parents: Iterable[Artifact]) -> Base | None:
    if config.base is None:
        return None
    owners = [parent for parent in parents if str(parent.ref) == config.base]
    return open_base(config.base, fetch_folder(owners[0].location) if owners else config.base)


def learn_tokenizer(config: TokenizerConfig, texts: list[str]) -> ExpandedTokenizer:
    assert config.num_pieces is not None
    definition = bpe.learn(texts, config.num_pieces, config.all_special_tokens, config.min_count)
    _say_shortage(config, first_free_id(definition))
    return ExpandedTokenizer(definition, {}, [])


def expand_base(config: TokenizerConfig, base: Base, texts: list[str]) -> ExpandedTokenizer:
    """Learn pieces on the target's words, then append them and the special tokens that the base lacks."""
    target, start, size, family = script(config.scripts), time.monotonic(), config.size, base.family
    definition, lacking = claim_tokens(base, config.all_special_tokens, config.eos_token, config.pad_token)
    words = family.count_words(definition, texts, target)
    if not words:
        scripts = " or ".join(config.scripts)
        raise DataError(f"{', '.join(config.sources)} holds no {scripts} word; set scripts to the target's own")
    _say(f"{words.total():,} words of the target, {len(words):,} distinct", start)
    found = learn_pieces(family, definition, words, count_target_words(texts, target), target, size)
    learned = cut_to_size(found, size)
    _say(f"{len(learned):,} pieces learned", start)
    _say_shortage(config, len(learned))
    return ExpandedTokenizer(*family.append_learned(definition, learned, lacking, words), learning_curve(found))


def _say_shortage(config: TokenizerConfig, found: int) -> None:
    if config.num_pieces is not None and found < config.num_pieces:
        wanted = f"num_pieces={config.num_pieces:,}"
        print(f"  the sample supports only {found:,} of {wanted} at min_count={config.min_count}", flush=True)


def _say(what: str, start: float) -> None:
    print(f"  {what}, {time.monotonic() - start:.1f} s", flush=True)


def write(config: TokenizerConfig, base: Base | None, expanded: ExpandedTokenizer, folder: Path) -> Expansion:
    """Write the folder that `AutoTokenizer` loads, and the manifest of added pieces."""
    roles = {"bos_token": config.eos_token, "eos_token": config.eos_token, "pad_token": config.pad_token}
    if base is not None:
        declared = tokenizer.read_roles(base.folder)
        if "eos_token" in declared:  # explicit roles: texts begin with no token when none is named
            del roles["bos_token"]
        roles |= declared
    source = read_chat_template(config, base)
    base_size = first_free_id(base.definition) if base else 0
    num_ids = first_free_id(expanded.definition)
    expansion = Expansion(
        method=base.family.METHOD if base else "bpe",
        base=base.name if base else None,
        base_hash=base.hash if base else None,
        base_size=base_size,
        num_ids=num_ids,
        size=-(-num_ids // config.pad_to_multiple) * config.pad_to_multiple,
        new_ids=tuple(range(base_size, num_ids)),
        pieces=expanded.pieces,
        hash=tokenizer.write_folder(folder, expanded.definition, roles, source),
    )
    tokenizer.write_expansion(folder, expansion)
    return expansion


def read_chat_template(config: TokenizerConfig, base: Base | None) -> str:
    """Return the Jinja source that `chat_template` names; the base tokenizer is loaded only for its own."""
    if base is None or config.chat_template != template_source.BASE:
        return template_source.read_template(config.chat_template)
    return template_source.read_template(config.chat_template, load_tokenizer(base.folder).chat_template)


def measure_all(config: TokenizerConfig, corpus: Artifact, base: Base | None, folder: Path) -> dict[str, Any]:
    """Measure on text that was not learned on; with a base, compare with it and refuse what breaks a gate."""
    groups = (("target", config.sources), ("protected", config.protected_sources), ("code", config.code_sources))
    held_out = [_hold_out(config, corpus, group, source) for group, sources in groups for source in sources]
    after = load_tokenizer(folder)
    if base is None:
        return describe(measure_groups(after, held_out), "after")
    facts = compare(load_tokenizer(base.folder), after, held_out, script(config.scripts))
    check_gates(config.gates, facts)
    print(f"  {summarise(facts)}", flush=True)
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
    measured = config.sources + config.protected_sources + config.code_sources
    for split, sources in (("train", config.sources), (config.measured_split, measured)):
        for source in sources:
            shard_paths(parents[0], RecordKind.documents, source, split)
    base = open_parent(config, parents)
    read_chat_template(config, base)
    script(config.scripts)


def _parents(config: TokenizerConfig) -> tuple[Ref, ...]:
    return (Ref.parse(config.corpus, Kind.corpus), *parse_refs(config.base))


def _inputs(config: TokenizerConfig) -> tuple[str | None, ...]:
    return config.base, config.chat_template if config.chat_template.endswith(template_source.SUFFIX) else None


TOKENIZER = Stage(
    "expand_tokenizer", Kind.tokenizer, TokenizerConfig, _parents, expand_tokenizer, check, inputs=_inputs
)
