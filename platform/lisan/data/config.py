"""What rows, mixes and the packing of rows are configured by."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.stage import ClusterConfig, StageConfig, StorageConfig
from lisan.records.kinds import RecordKind

BLOCK_RECORDS = 64
"Neighbours that share a place in the plan: fewer mix better, more let a decoded row group serve longer."


SOURCE_BITS = 10
"Of a row id, where rows are made while training runs."
MAX_SOURCES = 1 << SOURCE_BITS


@dataclass(frozen=True, kw_only=True, slots=True)
class MixStageConfig:
    from_step: int
    "The first step with these weights; they hold until the next stage or the end."
    weights: dict[str, float]
    "Share of the tokens that each source gives; a source that is not named is not read."


@dataclass(frozen=True, kw_only=True, slots=True)
class MixConfig:
    weights: dict[str, float] = field(default_factory=dict)
    "Share of the tokens that each source gives; empty takes every source in proportion to its size."
    stages: dict[str, MixStageConfig] = field(default_factory=dict)
    "Other weights from a step on, by a name of your choice: {anneal: {from_step: 800, weights: {books: 1}}}."
    max_epochs: float = 20.0
    "How often a source may repeat within the run; scarce target text bears 15-20 repetitions."
    epoch_caps: dict[str, float] = field(default_factory=dict)
    "Sources that may repeat more often or less often than max_epochs."
    seed: int = 0

    def __post_init__(self) -> None:
        for key, _, weights in self.phases():
            _check_weights(key, weights)
        if not self.max_epochs > 0:
            raise ConfigError(f"mix.max_epochs must be > 0, got {self.max_epochs}")
        if bad := {source: cap for source, cap in self.epoch_caps.items() if not cap > 0}:
            raise ConfigError(f"mix.epoch_caps must be > 0, got {bad}; give a source weight 0 to leave it out")
        self._check_stages()

    def _check_stages(self) -> None:
        before = -1
        for name, stage in self.stages.items():
            if not stage.weights:
                raise ConfigError(f"mix.stages.{name}.weights is empty; give at least one source a weight above 0")
            if stage.from_step <= before:
                raise ConfigError(
                    f"mix.stages.{name}.from_step must be > {before}, got {stage.from_step}; "
                    "stages stand in the order they are trained in"
                )
            if stage.from_step == 0 and self.weights:
                raise ConfigError(
                    f"mix.stages.{name}.from_step is 0, so mix.weights would never be used; leave one of the two out"
                )
            before = stage.from_step

    def phases(self) -> Iterator[tuple[str, int, dict[str, float]]]:
        """Yield the key, the first step and the weights of each part of the run."""
        if all(stage.from_step > 0 for stage in self.stages.values()):
            yield "mix.weights", 0, self.weights
        for name, stage in self.stages.items():
            yield f"mix.stages.{name}.weights", stage.from_step, stage.weights

    def reads(self, source: str) -> bool:
        """Tell whether any part of the run reads the source."""
        return any(not weights or weights.get(source, 0) > 0 for _, _, weights in self.phases())


class Strategy(StrEnum):
    best_fit = "best_fit"
    "As the items come, into one of `open_rows` rows: they keep about their order."
    window = "window"
    "`window_items` at a time, the longest first: 0.4 % of padding where best_fit has 0.9 %, for more memory."
    concat = "concat"
    "Items end to end, cut wherever a row ends: the baseline. Documents only."


class Overflow(StrEnum):
    split = "split"  # type: ignore[assignment]  # a str has a method of that name
    truncate = "truncate"
    drop = "drop"


@dataclass(frozen=True, kw_only=True, slots=True)
class PackingConfig:
    strategy: Strategy = Strategy.best_fit
    open_rows: int = 64
    "Rows that best_fit keeps open for a better fit; on web text 64 waste 0.9 % at 1024 tokens, 0.7 % at 2048 and 0.4 % at 4096."
    window_items: int = 20_000
    "Items that window sorts at a time."
    min_free: int = 8
    "A row with this many tokens free or fewer is full."
    overflow: Overflow = Overflow.split
    """What happens to an item longer than a row. Chats and preferences are never split; truncation cuts the two replies of
    a preference to half a row each."""

    def __post_init__(self) -> None:
        if self.open_rows < 1 or self.window_items < 1 or self.min_free < 0:
            raise ConfigError(
                "packing needs open_rows >= 1, window_items >= 1 and min_free >= 0, got "
                f"{self.open_rows}, {self.window_items}, {self.min_free}"
            )


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
    store_rows: bool = True
    "False stores none and makes them while training runs: for corpora too large to tokenise first."
    block_records: int = BLOCK_RECORDS
    "Neighbouring records that are read together where rows are made while training runs."

    def __post_init__(self) -> None:
        if self.context_length < 8:
            raise ConfigError(f"context_length must be >= 8, got {self.context_length}")
        check_packing(self.kind, self.packing)
        if self.block_records < 1:
            raise ConfigError(f"block_records must be >= 1, got {self.block_records}")
        if not self.store_rows and len(self.sources) > MAX_SOURCES:
            raise ConfigError(
                f"store_rows=false takes at most {MAX_SOURCES} sources, got {len(self.sources)}; join some of them"
            )
        if self.store_rows and self.block_records != BLOCK_RECORDS:
            raise ConfigError("block_records has no effect on stored rows; set store_rows=false or leave it out")
        if not self.store_rows and self.kind is RecordKind.preferences:
            raise ConfigError("store_rows=false makes no rows of preferences, whose reference pass needs them stored")


@dataclass(frozen=True, kw_only=True, slots=True)
class ShowConfig:
    tokens: str | None = None
    "tokens/name@version, to show rows as they are trained."
    corpus: str | None = None
    "corpus/name@version, to show records as they would be encoded."
    tokenizer: str | None = None
    "With a corpus: tokenizer/name@version, model/name@version, a local folder or a hub id."
    kind: RecordKind | None = None
    "With a corpus: documents, conversations or preferences; null takes conversations."
    split: str | None = None
    "With a corpus: null takes train."
    sources: tuple[str, ...] = ()
    "Sources to show, in turn; empty takes all."
    num_examples: int = 2
    "Rows or records to show."
    first: int = 0
    "Rows or records of each source to skip."
    storage: StorageConfig = field(default_factory=StorageConfig, metadata=NOT_IDENTITY)
    cluster: ClusterConfig = field(default_factory=ClusterConfig, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.corpus is None):
            raise ConfigError(
                "tokens must be set: add tokens=... for rows as they are trained, or instead corpus=... for records"
            )
        if self.corpus is not None and self.tokenizer is None:
            raise ConfigError("tokenizer must be set to encode a corpus with: add tokenizer=tokenizer/name@version")
        for name in ("tokenizer", "kind", "split") if self.tokens else ():
            if getattr(self, name) is not None:
                raise ConfigError(f"{name}={getattr(self, name)} has no effect: tokens are encoded already; remove it")
        if self.kind is RecordKind.questions:
            raise ConfigError("kind=questions is for evaluation and is never trained on; choose another kind")
        if self.num_examples < 1 or self.first < 0:
            raise ConfigError(f"num_examples must be >= 1 and first >= 0, got {self.num_examples} and {self.first}")


def _check_weights(key: str, weights: Mapping[str, float]) -> None:
    if bad := {source: weight for source, weight in weights.items() if not 0 <= weight < math.inf}:
        raise ConfigError(f"{key} must be >= 0, got {bad}")
    if weights and sum(weights.values()) <= 0:
        raise ConfigError(f"{key} sum to nothing; give at least one source a weight above 0")


def check_packing(kind: RecordKind, packing: PackingConfig) -> None:
    """Refuse to train on evaluation records, and to cut records that must stay whole."""
    if kind is RecordKind.questions:
        raise ConfigError("kind=questions is for evaluation and is never trained on")
    if kind is RecordKind.documents:
        return
    if packing.strategy is Strategy.concat:
        raise ConfigError(
            f"packing.strategy=concat cuts {kind} wherever a row ends; set packing.strategy to best_fit or window"
        )
    if packing.overflow is Overflow.split:
        raise ConfigError(f"packing.overflow=split cuts a {kind} record in two; set packing.overflow=drop")
