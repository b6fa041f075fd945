"""Config of `expand_tokenizer`."""

from dataclasses import dataclass, field

from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class Gates:
    max_changed_ratio: float = 1e-5
    """Share of the tokens of protected text whose encoding may change, on its lines without a character of the target scripts: the
    others are meant to change, and are counted and said."""
    max_changed_code_ratio: float = 1e-5
    "The same for source code: some of our own writing, and that of `code_sources`."
    max_lost_ratio: float = 0.0
    "Share of the probes and held-out texts that may come back neither as they were nor as the base gives them back."
    min_factor: float = 1.0
    "How many times fewer tokens the target must take; 0 asks for nothing."

    def __post_init__(self) -> None:
        for name in ("max_changed_ratio", "max_changed_code_ratio", "max_lost_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"gates.{name} must lie in 0 .. 1, got {getattr(self, name)}")
        if self.min_factor < 0:
            raise ConfigError(
                f"gates.min_factor must be >= 0 (1 asks for no gain, 0 for nothing), got {self.min_factor}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class VocabularySize:
    """Exactly one of the three says where learning ends."""

    num_pieces: int | None
    target_fertility: float | None
    knee: float | None
    max_pieces: int
    min_count: int

    def __post_init__(self) -> None:
        ways = {name: getattr(self, name) for name in ("num_pieces", "target_fertility", "knee")}
        chosen = [f"{name}={value:g}" for name, value in ways.items() if value is not None]
        if len(chosen) != 1:
            raise ConfigError(
                f"one of {', '.join(ways)} says how many pieces are learned, got {' and '.join(chosen) or 'none'}; "
                "set one and the others to null"
            )
        if self.target_fertility is not None and self.target_fertility < 1:
            raise ConfigError(f"target_fertility must be >= 1 token per word, got {self.target_fertility:g}")
        if self.knee is not None and self.knee <= 0:
            raise ConfigError(f"knee must be > 0 tokens in a million words, got {self.knee:g}")

    @property
    def max_learned(self) -> int:
        return self.max_pieces if self.num_pieces is None else self.num_pieces


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
    code_sources: tuple[str, ...] = ()
    "Document sources of program code that must not change either; a few probes of our own are always measured."
    num_pieces: int | None = None
    "New pieces wanted; of a new tokenizer, all its pieces with the 256 bytes and the special tokens."
    target_fertility: float | None = None
    "In place of num_pieces: learn until the target takes this many tokens per word of the sample."
    knee: float | None = None
    """In place of num_pieces: the last piece that saves this many tokens in a million words of the sample, to the nearest 256.
    Every row costs the same. Arabic: 30 means 7k to 9k pieces, 20 means 11k to 13k."""
    max_pieces: int = 65_536
    "Where target_fertility and knee give up."
    scripts: tuple[str, ...] = ("arabic",)
    "Words in the Unicode names of the target's characters: arabic, tifinagh, devanagari; a new tokenizer covers all."
    special_tokens: tuple[str, ...] = ()
    "Further special tokens, besides those of the next three fields; a base is given those it lacks."
    eos_token: str = "<|endoftext|>"
    "Ends a document, unless the base declares its own; also the token a text may begin with."
    pad_token: str = "<|pad|>"
    chat_template: str = "chatml"
    """A file of tokenizer/chat/templates (chatml, llama2, llama3, gemma2, mistral, mistral_v3), the path of a `.jinja` file, or
    `base` to keep the base's own. A file is known by its path: bump the version when its text changes."""
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
    neighbours: int = 0
    "Old pieces found for each new one by the company they keep in all sources; model.new_rows.method=similarity takes 10 or so."
    seed: int = 0
    gates: Gates = field(default_factory=Gates)

    def __post_init__(self) -> None:
        for name in ("max_bytes", "measured_bytes", "pad_to_multiple", "min_count", "max_pieces", "num_pieces"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, got {getattr(self, name)}")
        if not self.sources:
            raise ConfigError("sources must name at least one document source of the corpus to learn on")
        if self.base is None:
            self._check_new()
        _ = self.size  # which checks itself

    @property
    def size(self) -> VocabularySize:
        """Where learning ends."""
        return VocabularySize(
            num_pieces=self.num_pieces,
            target_fertility=self.target_fertility,
            knee=self.knee,
            max_pieces=self.max_pieces,
            min_count=self.min_count,
        )

    @property
    def all_special_tokens(self) -> tuple[str, ...]:
        """A new tokenizer's first ids; a base is given those it lacks, but no second end-of-text or padding token."""
        from lisan.tokenizer.chat.template_source import special_tokens  # brings jinja2, which --help does without

        marks = special_tokens(self.chat_template)
        return tuple(dict.fromkeys((self.eos_token, *marks, self.pad_token, *self.special_tokens)))

    def _check_new(self) -> None:
        least = 256 + len(self.all_special_tokens)
        if self.num_pieces is None:
            raise ConfigError(
                "num_pieces must be set when base is null: target_fertility and knee are for an expansion"
            )
        if self.num_pieces < least:
            raise ConfigError(
                f"num_pieces of a new tokenizer counts 256 bytes and {len(self.all_special_tokens)} special tokens, "
                f"so that it must be >= {least}, got {self.num_pieces}"
            )
        if self.neighbours:
            raise ConfigError(
                "neighbours of new pieces are looked for among old ones and base is null; set a base or drop it"
            )
        if self.gates.min_factor > 1:
            raise ConfigError(f"gates.min_factor is {self.gates.min_factor:g} but base is null; set a base or drop it")
