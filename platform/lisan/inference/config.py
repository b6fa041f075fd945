"""Config of engines, endpoints, sampling and judges."""

import os
from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.stage import StorageConfig, TrackingConfig
from lisan.records.kinds import RecordKind

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"Listen addresses that mean every interface, and the address by which this machine reaches the server."


class Dtype(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Engine arguments of vLLM, under vLLM's names where it has them."""

    max_model_len: int | None = None
    "Maximum tokens of prompt plus reply; null takes the model's limit."
    dtype: Dtype = Dtype.auto
    """auto takes the dtype of the weights, bfloat16 for float32 weights, and float32 on CPUs without native bf16 instructions
    unless the weights are quantised."""
    max_num_seqs: int | None = None
    "Requests that one replica decodes in a batch; null takes vLLM's default."
    tensor_parallel_size: int = 1
    "GPUs per replica."
    gpu_memory_utilization: float = 0.9
    "Share of a GPU's memory for vLLM; no effect on machines without GPU."
    kv_cache_gb: float = 1.0
    "GB of KV cache on machines without GPU; allocating 1 GB takes 1.6 s."
    threads: int = 0
    "Compute threads of a replica without GPU; 0 takes every core."
    enforce_eager: bool | None = None
    "Skip compilation and graph capture; null skips them on machines without GPU, where they take a minute to pay off."

    def __post_init__(self) -> None:
        for key, value in (("max_model_len", self.max_model_len), ("max_num_seqs", self.max_num_seqs)):
            if value is not None and value < 1:
                raise ConfigError(f"engine.{key} must be >= 1 or null, got {value}")
        if not 0 < self.gpu_memory_utilization <= 1:
            raise ConfigError(f"engine.gpu_memory_utilization must be in (0, 1], got {self.gpu_memory_utilization}")
        if self.kv_cache_gb <= 0 or self.tensor_parallel_size < 1 or self.threads < 0:
            raise ConfigError(
                "engine needs kv_cache_gb > 0, tensor_parallel_size >= 1 and threads >= 0, "
                f"got {self.kv_cache_gb}, {self.tensor_parallel_size} and {self.threads}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class AutoscalingConfig:
    """Autoscaling of replicas, under Ray Serve's names."""

    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: float = 16.0
    "Concurrent requests per replica; more than that adds a replica."
    upscale_delay_s: float = 10.0
    downscale_delay_s: float = 120.0

    def __post_init__(self) -> None:
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise ConfigError(
                f"autoscaling needs 1 <= min_replicas <= max_replicas, got {self.min_replicas} and {self.max_replicas}"
            )
        if self.target_ongoing_requests <= 0:
            raise ConfigError(f"autoscaling.target_ongoing_requests must be > 0, got {self.target_ongoing_requests}")


@dataclass(frozen=True, kw_only=True, slots=True)
class ServeConfig:
    """An endpoint: the model, the address, the engine and its replicas."""

    model: str = "lisan"
    "Name of the registered model, and the model id of the API."
    alias: str = "champion"
    path: str | None = None
    "Model folder or model/name@version to serve without the registry; null takes the alias from the registry."
    host: str = "127.0.0.1"
    "Listen address; 0.0.0.0 accepts other machines, and the endpoint needs no key."
    port: int = 8000
    route_prefix: str = "/"
    use_gpu: bool | None = None
    "null uses GPUs when the joined cluster, or else this machine, has any."
    cpus_per_replica: float = 1.0
    "CPUs that Ray reserves for a replica; engine.threads sets its compute threads."
    max_queued_requests: int = 512
    "Requests that may wait for a replica; further ones get status 503."
    start_timeout_s: float = 600.0
    "Time limit from the start to the first answer."
    engine: EngineConfig = field(default_factory=EngineConfig)
    autoscaling: AutoscalingConfig = field(default_factory=AutoscalingConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        if not self.route_prefix.startswith("/"):
            raise ConfigError(f"route_prefix must start with '/', got {self.route_prefix!r}")
        if not self.host or not 1 <= self.port <= 65_535:
            raise ConfigError(f"the endpoint needs a host and a port in 1..65535, got {self.host!r} and {self.port}")
        for key in ("cpus_per_replica", "max_queued_requests", "start_timeout_s"):
            if getattr(self, key) <= 0:
                raise ConfigError(f"{key} must be > 0, got {getattr(self, key)}")

    @property
    def address(self) -> str:
        """URL by which this machine reaches the server: http://host:port."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"


RUBRIC = """You judge the reply of an assistant. Say in one or two sentences how well it serves the user: whether it is true, \
answers what was asked, leaves nothing important out, and is written well in the language that the user expects. \
Then end with a line that says nothing but "Score: N", where N is a whole number from 1 (useless) to 10 (could not be better)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingConfig:
    """Sampling parameters of the answers to each prompt."""

    num_answers: int = 10
    "Per prompt."
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    """Number of most likely tokens to sample from; 0 samples from all, overriding the model's generation defaults. An extension
    of vLLM; null sends nothing."""
    max_tokens: int = 512
    "Per answer; an answer cut at this limit is dropped."
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
    """Records of a corpus from which prompts are read."""

    corpus: str
    "corpus/name@version"
    kind: RecordKind = RecordKind.conversations
    "The good reply is the last assistant turn of conversations, the chosen reply of preferences."
    sources: tuple[str, ...] = ()
    "Sources of the corpus; empty takes all with this kind of record."
    split: str = "train"
    limit: int | None = None
    "Prompts per source, by smallest id; ids are hashes, so the sample is unbiased. null takes all."

    def __post_init__(self) -> None:
        if self.kind not in (RecordKind.conversations, RecordKind.preferences):
            raise ConfigError(f"prompts.kind must be conversations or preferences, got {self.kind}")
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"prompts.limit must be >= 1 or null, got {self.limit}")


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointConfig:
    """Address of an OpenAI-compatible endpoint that is running."""

    url: str | None = None
    "Base URL with /v1, such as http://127.0.0.1:8000/v1."
    model: str | None = None
    "Model id at the endpoint; null takes its only model."
    key: str | None = None
    "Name of the environment variable with the API key; null sends none. The key itself is never in a config or manifest."

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
    """Load on endpoints. Not part of an artifact's identity: a killed job may resume with less concurrency."""

    concurrency: int = 64
    "Maximum concurrent requests to each endpoint."
    timeout_s: float = 300.0
    "Time limit of a request, which is then retried."
    num_retries: int = 6
    "Retries per request; the pause doubles from 0.5 to 8 s, unless the endpoint sends one."

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
    """The judge that scores sampled answers."""

    kind: JudgeKind = JudgeKind.reference
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    "Of the judging language model; kind=endpoint."
    rubric: str = RUBRIC
    'System prompt of the judge, whose replies must end with a line "Score: N", 1 to 10; kind=endpoint.'
    max_tokens: int = 512
    "Per judgement; kind=endpoint."
    path: str | None = None
    "Folder or hub id of a reward model, a sequence classifier with one label; kind=reward."
    batch_size: int = 8
    "Answers per forward pass; kind=reward."

    def __post_init__(self) -> None:
        if self.kind is JudgeKind.endpoint and self.endpoint.url is None:
            raise ConfigError("judge.kind=endpoint needs judge.endpoint.url, the address of the judging model")
        if self.kind is JudgeKind.reward and self.path is None:
            raise ConfigError("judge.kind=reward needs judge.path, the folder or hub id of a reward model")
        if self.batch_size < 1 or self.max_tokens < 1:
            raise ConfigError(
                f"judge.batch_size and max_tokens must be >= 1, got {self.batch_size} and {self.max_tokens}"
            )
        self._refuse_unused()

    @property
    def model_path(self) -> str:
        """Path or hub id of the reward model, with `~` expanded."""
        return os.path.expanduser(self.path or "")

    def _refuse_unused(self) -> None:
        """Refuse fields that only another kind of judge uses."""
        plain = {"endpoint": EndpointConfig(), "rubric": RUBRIC, "max_tokens": 512, "path": None, "batch_size": 8}
        used = {JudgeKind.endpoint: ("endpoint", "rubric", "max_tokens"), JudgeKind.reward: ("path", "batch_size")}
        for name, default in plain.items():
            if name not in used.get(self.kind, ()) and getattr(self, name) != default:
                raise ConfigError(f"judge.{name} has no effect on judge.kind={self.kind}; leave it out")
