"""Config of `sample_preferences`."""

from dataclasses import dataclass, field

from lisan.core.errors import ConfigError
from lisan.core.identity import NOT_IDENTITY
from lisan.core.stage import StageConfig
from lisan.inference.config import (
    EndpointConfig,
    EngineConfig,
    JudgeConfig,
    PromptsConfig,
    SamplingConfig,
    TrafficConfig,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleConfig(StageConfig):
    prompts: PromptsConfig
    policy: str | None = None
    "model/name@version or a local folder to serve during the job: one replica, or one per worker of the cluster preset."
    endpoint: EndpointConfig = field(default_factory=EndpointConfig)
    "Endpoint of a running model; instead of policy."
    engine: EngineConfig = field(default_factory=EngineConfig)
    "Engine that serves `policy`."
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    min_gap: float = 0.0
    "Minimum difference between best and worst score; equal scores never make a pair."
    same_language: bool = False
    "Whether answers in another script than the good reply's are dropped before judging."
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
