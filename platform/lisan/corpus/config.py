"""Configuration of a corpus: its sources, normalisation, deduplication and the size of the generated world."""

from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig
from lisan.microworld.config import WorldConfig
from lisan.records.kinds import RecordKind


class SourceFormat(StrEnum):
    """File format of a source. All but parquet may be compressed: gzip, bz2, xz, zstd, lz4."""

    jsonl = "jsonl"
    parquet = "parquet"
    csv = "csv"
    tsv = "tsv"
    text = "text"
    json = "json"
    aligned = "aligned"
    microworld = "microworld"


class TextUnit(StrEnum):
    """The unit that becomes one row of a text file."""

    line = "line"
    block = "block"
    file = "file"


class RowLayout(StrEnum):
    """The form of a row; `lisan.corpus.layouts.layouts` has one function for each."""

    text = "text"
    markdown = "markdown"
    gutenberg = "gutenberg"
    headline = "headline"
    parallel = "parallel"
    prompt = "prompt"
    alpaca = "alpaca"
    seed_task = "seed_task"
    messages = "messages"
    tree = "tree"
    squad = "squad"
    preference = "preference"
    dialogue_preference = "dialogue_preference"
    letters = "letters"
    arabicmmlu = "arabicmmlu"
    true_false = "true_false"
    choices = "choices"
    belebele = "belebele"


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    format: SourceFormat = SourceFormat.jsonl
    path: tuple[str, ...] = ()
    "Files, folders or glob patterns, local or URIs; read in the order of their names."
    pair_path: tuple[str, ...] = ()
    "The same number of files in `pair_language`, line for line (format aligned)."
    kind: RecordKind = RecordKind.documents
    layout: RowLayout = RowLayout.text
    "Form of the rows."
    fields: dict[str, str] = field(default_factory=dict)
    "Names that the layout's fields have in these files, where they differ: {text: body}."
    columns: tuple[str, ...] = ()
    "Column names of a csv or tsv file without a header; empty: the first line has them."
    unit: TextUnit = TextUnit.line
    "One document of a text file: a line, a block or the whole file."
    separator: str = ""
    "The line that stands between two blocks; empty: a blank line."
    language: str = ""
    "BCP 47-like label of the text: en, ar, ary, arz, ary-Latn; of `first` in layout parallel."
    pair_language: str = ""
    "Label of `second` in layout parallel."
    contrast: bool = False
    "Make preferences of conversations: chosen is the real answer, rejected the answer of another conversation."
    world: str = ""
    "Source of the micro-world (format microworld)."
    encoding: str = "utf-8"
    split: str | None = None
    "Put every record in this split; null: train or validation by hash, and validation for questions."
    max_records: int | None = None
    "Stop after this many rows."
    licence: str = ""
    "Licence of the text; kept in the manifest."


@dataclass(frozen=True, kw_only=True, slots=True)
class NormaliseConfig:
    enabled: bool = True
    "Normalise Unicode (T0); false keeps every text unchanged."
    strip_diacritics: bool = False
    "Also drop Arabic short vowels; a model trained so can neither read nor write them."


@dataclass(frozen=True, kw_only=True, slots=True)
class DedupConfig:
    exact: bool = True
    "Remove documents that are equal but for case, vowel marks, punctuation and spacing, across all document sources."


@dataclass(frozen=True, kw_only=True, slots=True)
class CorpusConfig(StageConfig):
    """From raw files to `corpus/<name>@<version>`."""

    sources: dict[str, SourceConfig]
    "Sources by name; the name is a folder of the artifact and is used in mixes."
    normalise: NormaliseConfig = field(default_factory=NormaliseConfig)
    dedup: DedupConfig = field(default_factory=DedupConfig)
    microworld: WorldConfig = field(default_factory=WorldConfig)
    "Size and seed of the generated world, for sources of format microworld."
    validation_ratio: float = 0.02
    "Share of documents, conversations and preferences that are held out, drawn by a hash of their ids."
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.validation_ratio < 1:
            raise ConfigError(f"validation_ratio must be in [0, 1), got {self.validation_ratio}")
