"""Configuration of the generated world."""

from dataclasses import dataclass

from lisan.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class WorldConfig:
    """Size of the micro-world; the numbers count records per source."""

    seed: int = 0
    "Determines the wordings, their order and the languages of each fact."
    num_documents: int = 4000
    num_conversations: int = 2000
    num_preferences: int = 1000
    num_questions: int | None = None
    "Questions per language; null asks for every fact about a country once, and for a sample of the others."

    def __post_init__(self) -> None:
        for name in ("num_documents", "num_conversations", "num_preferences", "num_questions"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ConfigError(f"{name} must be >= 0, got {value}; 0 leaves the source empty")
