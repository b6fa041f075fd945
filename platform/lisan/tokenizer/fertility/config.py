"""Fields of `report_fertility`."""

import re
from dataclasses import dataclass

from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FertilityConfig(StageConfig):
    tokenizers: dict[str, str]
    "Label to tokenizer/name@version, model/name@version, a local folder or a hub id; shown in this order."
    base: str | None = None
    "Label of the tokenizer that the others are held against; null takes the first."
    corpus: str
    "corpus/name@version"
    sources: tuple[str, ...] = ()
    "Document sources to measure on, pooled by language; empty takes all that have the split."
    split: str = "validation"
    max_bytes: int = 1_000_000
    "UTF-8 bytes to measure a source on, drawn at random."
    context_length: int = 4096
    "Tokens of the context that words are fitted into."
    num_examples: int = 3
    "Sentences of a language that are shown cut into pieces."
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.tokenizers:
            raise ConfigError("tokenizers must name at least one: tokenizers={LABEL: tokenizer/name@version}")
        for label in self.tokenizers:
            if not re.fullmatch(r"[\w.+-]+", label, re.ASCII):
                raise ConfigError(
                    f"tokenizers: a label must be letters, digits, '.', '_', '+' or '-', got {label!r}; rename it"
                )
        for name, least in (("max_bytes", 1), ("context_length", 1), ("num_examples", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for source in self.sources:
            if self.sources.count(source) > 1:
                raise ConfigError(f"sources names {source} twice; its text would count double, name it once")
        # The order of a mapping is no part of an artifact's identity, the base that it chooses is.
        object.__setattr__(self, "base", self.base or next(iter(self.tokenizers)))
        if self.base not in self.tokenizers:
            raise ConfigError(f"base must be one of the labels {', '.join(self.tokenizers)}, got {self.base!r}")
