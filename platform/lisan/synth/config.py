"""What preferences are sampled and judged by."""

import os
from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.config import NOT_IDENTITY
from lisan.core.errors import ConfigError
from lisan.core.stage import StageConfig
from lisan.corpus.kinds import RecordKind
from lisan.serve.config import EngineConfig

RUBRIC = """You judge the reply of an assistant. Say in one or two sentences how well it serves the user: whether it is true, \
answers what was asked, leaves nothing important out, and is written well in the language that the user expects. \
Then end with a line that says nothing but "Score: N", where N is a whole number from 1 (useless) to 10 (could not be better)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    num_answers: int = 10
    "To each prompt."
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    """Most likely tokens drawn from; 0 draws from all of them whatever the model's generation defaults say. An extension of
    vLLM, not sent when null."""
    max_tokens: int = 512
    "Of an answer; one that is cut there is dropped."
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_answers < 2:
            raise ConfigError(
                f"sampling.num_answers must be >= 2 to have a better and a worse one, got {self.num_answers}"
            )
        if self.temperature <= 0 or not 0 < self.top_p <= 1 or self.max_tokens < 1:
            raise ConfigError(
                "sampling needs temperature > 0 (at 0 all answers are the same), top_p in (0, 1] and max_tokens >= 1, "
                f"got {self.temperature}, {self.top_p} and {self.max_tokens}"
            )
        if self.top_k is not None and (self.top_k < 0 or self.top_k == 1):
            raise ConfigError(f"sampling.top_k must be 0 or >= 2 (at 1 all answers are the same), got {self.top_k}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptsConfig:
    corpus: str
    "corpus/name@version"
    kind: RecordKind = RecordKind.conversations
    "conversations are asked for their last reply; preferences for their reply, and the chosen one is the good one."
    sources: tuple[str, ...] = ()
    "Sources of the corpus; empty takes all that hold this kind of record."
    split: str = "train"
    limit: int | None = None
    "Prompts of each source, those with the smallest ids, which are hashes: a fair sample. null takes all."

    def __post_init__(self) -> None:
        if self.kind not in (RecordKind.conversations, RecordKind.preferences):
            raise ConfigError(f"prompts.kind must be conversations or preferences, got {self.kind}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts.limit must be >= 1 or null, got {self.limit}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    url: str | None = None
    "Base address with /v1, such as http://127.0.0.1:8000/v1."
    model: str | None = None
    "Id under which the endpoint serves it; null takes the only one."
    key: str | None = None
    "Name of the environment variable that holds the key; null sends none. The key itself is in no config or manifest."

    def __post_init__(self) -> None:
        for name in ("model", "key"):
            if self.url is None and getattr(self, name) is not None:
                raise ConfigError(
                    f"endpoint.{name}={getattr(self, name)} has no effect without endpoint.url; set that too"
                )
        if self.url is not None and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"endpoint.url must begin with http:// or https://, got {self.url!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrafficConfig:
    """How endpoints are asked. Never part of an artifact's identity: a killed job may go on with less."""

    concurrency: int = 64
    "Requests under way at a time, to each endpoint."
    timeout_s: float = 300.0
    "A request that takes longer is tried again."
    num_retries: int = 6
    "Tries after the first; the pause doubles from 0.5 to 8 s, or is what the endpoint says."

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout_s <= 0 or self.num_retries < 0:
            raise ConfigError(
                "traffic needs concurrency >= 1, timeout_s > 0 and num_retries >= 0, "
                f"got {self.concurrency}, {self.timeout_s} and {self.num_retries}"
            )


class JudgeKind(StrEnum):
    reference = "reference"
    endpoint = "endpoint"
    reward = "reward"


@dataclass(frozen=True, kw_only=True, slots=True)
class JudgeConfig:
    kind: JudgeKind = JudgeKind.reference
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    "Of the language model that judges; kind=endpoint."
    rubric: str = RUBRIC
    'What it is told; its answers must end with a line "Score: N", 1 to 10. kind=endpoint.'
    max_tokens: int = 512
    "Of a judgement; kind=endpoint."
    path: str | None = None
    "Folder or hub id of a reward model, a sequence classifier with one label; kind=reward."
    batch_size: int = 8
    "Answers that it scores at a time; kind=reward."

    def __post_init__(self) -> None:
        if self.kind is JudgeKind.endpoint and self.endpoint.url is None:
            raise ConfigError("judge.kind=endpoint needs judge.endpoint.url, the address of the model that judges")
        if self.kind is JudgeKind.reward and self.path is None:
            raise ConfigError("judge.kind=reward needs judge.path, the folder or hub id of a reward model")
        if self.batch_size < 1 or self.max_tokens < 1:
            raise ConfigError(
                f"judge.batch_size and max_tokens must be >= 1, got {self.batch_size} and {self.max_tokens}"
            )
        self._refuse_idle()

    @property
    def place(self) -> str:
        """Where the reward model is, with `~` for the home folder written out."""
        return os.path.expanduser(self.path or "")

    def _refuse_idle(self) -> None:
        """Refuse what is set for another kind of judge."""
        plain = {"endpoint": EndpointConfig(), "rubric": RUBRIC, "max_tokens": 512, "path": None, "batch_size": 8}
        used = {JudgeKind.endpoint: ("endpoint", "rubric", "max_tokens"), JudgeKind.reward: ("path", "batch_size")}
        for name, default in plain.items():
            if name not in used.get(self.kind, ()) and getattr(self, name) != default:
                raise ConfigError(f"judge.{name} has no effect on judge.kind={self.kind}; leave it out")


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig(StageConfig):
    prompts: PromptsConfig
    policy: str | None = None
    "model/name@version or a local folder to serve while the job runs: one replica, or one a worker of the cluster preset."
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    "Of a model that is served already; instead of policy."
    engine: EngineConfig = field(default_factory=EngineConfig)
    "How vLLM serves `policy`."
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    min_gap: float = 0.0
    "Score by which the best answer must lead the worst; equal ones never make a pair."
    same_language: bool = False
    "Whether answers in another script than the good reply's are dropped before they are judged."
    traffic: TrafficConfig = field(default_factory=TrafficConfig, metadata=NOT_IDENTITY)

    def __post_init__(self) -> None:
        if (self.policy is None) == (self.endpoint.url is None):
            raise ConfigError(
                "sample_preferences needs exactly one of policy (model/name@version or a folder, served for the job) and "
                f"endpoint.url (served already), got {self.policy or 'null'} and {self.endpoint.url or 'null'}"
            )
        if self.endpoint.url is not None and self.engine != EngineConfig():
            raise ConfigError("engine has no effect on a model that is served already; leave it out, or set policy")
        if self.min_gap < 0:
            raise ConfigError(f"min_gap must be >= 0, got {self.min_gap}")
