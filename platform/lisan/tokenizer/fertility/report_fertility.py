"""The `report_fertility` stage: any number of tokenizers over the same text, language by language.

In: tokenizers by label and a corpus. Out: a `report` artifact: metrics in the manifest, every figure in `report.json`,
a page with plots in `report.html`. Always: all tokenizers see the very same text, drawn by seed and not by the order in
which it is read, and all of them open before the first is measured. Jobs run it through `FERTILITY`.
"""

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lisan.core.artifact import Artifact, Draft, Kind, Ref, Store
from lisan.core.errors import ConfigError, DataError, first_line
from lisan.core.references import parse_refs
from lisan.core.seed import derive_seed
from lisan.core.stage import Run, Stage
from lisan.core.versions import code_commit
from lisan.corpus.reader import list_sources, list_splits, read_records, shard_paths
from lisan.records.kinds import RecordKind
from lisan.tokenizer.fertility.config import FertilityConfig
from lisan.tokenizer.fertility.fertility_page import CutSentence, FertilityPage, render_page
from lisan.tokenizer.fertility.figures import MeasuredTokenizer, metrics_of, print_table, report_of
from lisan.tokenizer.fertility.measure import FertilityCounts, measure, pool
from lisan.tokenizer.pieces import count_scripts, cut, piece_bytes
from lisan.tokenizer.text_sample import sample_texts
from lisan.tokenizer.tokenizer import load_tokenizer

EXAMPLE_LENGTHS = range(40, 140)
"Characters of a sentence that is shown cut into pieces."


@dataclass(frozen=True, slots=True)
class SourceText:
    """The text of a source that every tokenizer is measured on."""

    source: str
    language: str
    texts: list[str]

    @property
    def num_bytes(self) -> int:
        return sum(len(text.encode()) for text in self.texts)


def report_fertility(config: FertilityConfig, draft: Draft, run: Run) -> Mapping[str, Any]:
    assert config.base is not None
    opened = open_tokenizers(config, draft.parents)
    samples = sample_sources(config, draft.parent(Kind.corpus))
    measured = [
        measure_tokenizer(config, label, tokenizer, samples, draft.parents) for label, tokenizer in opened.items()
    ]
    settings = {"corpus": config.corpus, "split": config.split, "base": config.base, "seed": config.seed}
    report = {**settings, **report_of(measured, config.base, config.context_length)}
    page = FertilityPage(
        title=f"Tokenizers side by side: {config.name}",
        base=config.base,
        context_length=config.context_length,
        measured=measured,
        examples=_make_examples(config, opened, samples),
        facts={
            "corpus": f"{config.corpus}, split {config.split}",
            "sources": ", ".join(f"{sample.source} ({sample.num_bytes:,} bytes)" for sample in samples),
            "seed": str(config.seed),
            "commit": code_commit(),
        },
    )
    html = render_page(page).encode()
    (draft.location / "report.json").write_json(report)
    (draft.location / "report.html").write_bytes(html)
    metrics = metrics_of(measured, config.base, config.context_length)
    run.log_metrics(metrics)
    run.log_file("report.html", html)
    run.log_file("report.json", (draft.location / "report.json").read_bytes())
    print_table(measured, config.base, config.context_length)
    print(f"  page: {draft.location / 'report.html'}", flush=True)
    return {"metrics": metrics, **settings, "sampled_bytes": sum(sample.num_bytes for sample in samples)}


def open_tokenizers(config: FertilityConfig, parents: tuple[Artifact, ...]) -> dict[str, Any]:
    """Load every tokenizer; DataError names the label of one that does not open."""
    owners = {str(parent.ref): parent for parent in parents}
    opened = {}
    for label, place in config.tokenizers.items():
        try:
            opened[label] = load_tokenizer(owners.get(place, place))
        except Exception as error:  # the tokenizers library raises bare exceptions for files that it cannot parse
            reason = first_line(error)
            problem = (
                reason if isinstance(error, DataError) else f"{place} cannot be opened ({reason}); is it complete?"
            )
            raise DataError(f"tokenizers.{label}: {problem}") from error
    return opened


def sample_sources(config: FertilityConfig, corpus: Artifact) -> list[SourceText]:
    """Draw the text of every source, sources of a language side by side."""
    samples = []
    for source, language in choose_sources(config, corpus).items():
        texts = sample_texts(
            read_records(corpus, RecordKind.documents, config.split, (source,)), config.max_bytes, config.seed
        )
        if not texts:
            raise DataError(f"{corpus.ref} holds no text of {source} in split {config.split}; name others in sources")
        samples.append(SourceText(source, language, texts))
    order = list(dict.fromkeys(sample.language for sample in samples))
    print(
        f"  {len(samples)} sources of {len(order)} languages, {sum(s.num_bytes for s in samples):,} bytes", flush=True
    )
    return sorted(samples, key=lambda sample: order.index(sample.language))


def choose_sources(config: FertilityConfig, corpus: Artifact) -> dict[str, str]:
    """Return the sources to measure on, each with its language."""
    known = list_sources(corpus, RecordKind.documents)
    for source in config.sources:
        shard_paths(corpus, RecordKind.documents, source, config.split)
    splits = {source: list_splits(corpus, RecordKind.documents, source) for source in known}
    chosen = config.sources or tuple(source for source in known if config.split in splits[source])
    if not chosen:
        found = sorted({split for some in splits.values() for split in some})
        raise DataError(
            f"{corpus.ref} has no documents in split {config.split} to measure on; set split to one of: "
            f"{', '.join(found) or 'none'}"
        )
    return {source: known[source] for source in chosen}


def measure_tokenizer(
    config: FertilityConfig, label: str, tokenizer: Any, samples: list[SourceText], parents: tuple[Artifact, ...]
) -> MeasuredTokenizer:
    start = time.monotonic()
    rows: list[FertilityCounts] = []
    for sample in samples:
        rows.append(measure(tokenizer, sample.texts, sample.source, sample.language))
        if time.monotonic() - start > 10:
            print(f"  {label}: {sample.source} read, {time.monotonic() - start:.0f} s", flush=True)
    languages = dict.fromkeys(row.language for row in rows)
    pieces = piece_bytes(tokenizer)
    marks = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    owners = [parent for parent in parents if str(parent.ref) == config.tokenizers[label]]
    curve = owners[0].facts.get("learning_curve", ()) if owners else ()
    print(f"  {label}: {len(pieces):,} ids, {time.monotonic() - start:.1f} s", flush=True)
    return MeasuredTokenizer(
        label=label,
        place=config.tokenizers[label],
        num_pieces=len(tokenizer),
        scripts=count_scripts(piece for index, piece in enumerate(pieces) if index not in marks),
        rows=rows,
        languages={
            language: pool([row for row in rows if row.language == language], language) for language in languages
        },
        learning_curve=tuple((float(size), float(fertility)) for size, fertility in curve),
    )


def _make_examples(
    config: FertilityConfig, opened: Mapping[str, Any], samples: list[SourceText]
) -> dict[str, list[CutSentence]]:
    tables = {label: piece_bytes(tokenizer) for label, tokenizer in opened.items()}
    by_language: dict[str, list[str]] = {}
    for sample in samples:
        by_language.setdefault(sample.language, []).extend(sample.texts)
    return {
        language: [
            CutSentence(text, {label: cut(tokenizer, tables[label], text) for label, tokenizer in opened.items()})
            for text in pick_sentences(texts, config.num_examples, config.seed)
        ]
        for language, texts in by_language.items()
    }


def pick_sentences(texts: list[str], count: int, seed: int) -> list[str]:
    """Draw sentences of a readable length by seed; shorter texts are taken as they are when there is none."""
    parts = (part.strip() for text in texts for part in re.split(r"\n|(?<=[.!?؟。])\s", text))
    found = {part for part in parts if len(part) in EXAMPLE_LENGTHS and part.count(" ") > 3}
    found = found or {" ".join(text[: EXAMPLE_LENGTHS.stop].split()) for text in texts} - {""}
    return sorted(found, key=lambda part: derive_seed(seed, "example", part))[:count]


def _parents(config: FertilityConfig) -> tuple[Ref, ...]:
    refs = [Ref.parse(config.corpus, Kind.corpus)]
    for label, place in config.tokenizers.items():
        for ref in parse_refs(place):
            if ref.kind not in (Kind.tokenizer, Kind.model):
                raise ConfigError(f"tokenizers.{label} must be a tokenizer, a model, a folder or a hub id, got {place}")
            refs.append(ref)
    return tuple(dict.fromkeys(refs))


def _check(config: FertilityConfig, store: Store) -> None:
    parents = tuple(store.open(ref) for ref in _parents(config))
    choose_sources(config, parents[0])
    open_tokenizers(config, parents)


def _inputs(config: FertilityConfig) -> Iterable[str]:
    return config.tokenizers.values()


FERTILITY = Stage("report_fertility", Kind.report, FertilityConfig, _parents, report_fertility, _check, inputs=_inputs)
