"""What the endpoint and its engine are configured by."""

from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError
from lisan.core.stage import StorageConfig, TrackingConfig

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"Addresses that a server listens at for every interface, and where this machine reaches it."


class Dtype(StrEnum):
    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """What vLLM is told. The names are vLLM's where it has one."""

    max_model_len: int | None = None
    "Longest prompt plus reply in tokens; null takes the model's own limit."
    dtype: Dtype = Dtype.auto
    """auto computes in the type of the weights, in bfloat16 where they are float32, and in float32 on a CPU that multiplies
    bf16 without native instructions, unless the weights are quantised."""
    max_num_seqs: int | None = None
    "Requests that one replica decodes together; null leaves it to vLLM."
    tensor_parallel_size: int = 1
    "GPUs that share one replica."
    gpu_memory_utilization: float = 0.9
    "Share of a GPU's memory that vLLM takes; without effect on a machine without GPU."
    kv_cache_gb: float = 1.0
    "Memory for keys and values on a machine without GPU; 1 GB takes 1.6 s to prepare."
    threads: int = 0
    "Compute threads of a replica without GPU; 0 takes every core of its machine."
    enforce_eager: bool | None = None
    "Skip compilation and graph capture; null skips them on a machine without GPU, where they take a minute to pay off."

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
    """When Ray Serve adds and removes replicas. The names are Ray Serve's."""

    min_replicas: int = 1
    max_replicas: int = 2
    target_ongoing_requests: float = 16.0
    "Requests in flight that one replica is meant to carry; more than that adds a replica."
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
    model: str = "lisan"
    "Name of the registered model, and the id under which clients ask for it."
    alias: str = "champion"
    path: str | None = None
    "A model folder or model/name@version to serve without the registry; null asks the registry for the alias."
    host: str = "127.0.0.1"
    "Address that the endpoint listens at; 0.0.0.0 answers other machines, and the endpoint asks for no key."
    port: int = 8000
    route_prefix: str = "/"
    use_gpu: bool | None = None
    "null uses GPUs when the cluster (or, before one is joined, this machine) has any."
    cpus_per_replica: float = 1.0
    "CPUs that Ray sets aside for a replica; what it computes with is engine.threads."
    max_queued_requests: int = 512
    "Requests that may wait for a replica; the next one is answered 503."
    start_timeout_s: float = 600.0
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
        """Where this machine reaches the listener: http://host:port."""
        host = EVERYWHERE.get(self.host, self.host)
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}"
