"""Configuration of models: source or shape, sharding, attention, new embedding rows, LoRA.

Imports no torch, so that a job reads its config before it loads a library.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from lisan.core.errors import ConfigError


class ActivationCheckpointing(StrEnum):
    """Activations of a block that the backward pass recomputes instead of keeping."""

    none = "none"
    selective = "selective"
    "Recomputes all but matrix products and attention, which take the most time."
    full = "full"
    "Keeps the inputs of blocks only: about a third more arithmetic."


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardingConfig:
    """Distribution of a model over its workers. Not part of an artifact's identity: it changes the order of sums at most."""

    shard_workers: int = 0
    """Workers that share one copy of the weights; 0 takes the workers of one node. With more workers, each group has a copy and
    exchanges only gradients with the others (HSDP)."""
    tensor_parallel_size: int = 1
    """Neighbouring workers that split the products of every block between them, on the same rows; 1 splits none. For models with
    blocks too large for one GPU, or steps of few rows. Keep it within a node: it sums activations seven times a block. Not
    yet run on a GPU."""
    activation_checkpointing: ActivationCheckpointing = ActivationCheckpointing.none
    "Activations that the backward pass recomputes to save memory: none, selective or full."
    compile: bool = False
    "Whether torch.compile fuses the kernels of each block; the first step of each shape takes a minute. Needs a C++ compiler."

    def __post_init__(self) -> None:
        if self.shard_workers < 0:
            raise ConfigError(
                f"sharding.shard_workers must be >= 0, got {self.shard_workers}; 0 takes the workers of one node"
            )
        if self.tensor_parallel_size < 1:
            raise ConfigError(
                f"sharding.tensor_parallel_size must be >= 1, got {self.tensor_parallel_size}; 1 splits no block"
            )
        if self.tensor_parallel_size > 1 and self.compile:
            raise ConfigError(
                f"sharding.compile=true is not possible with sharding.tensor_parallel_size={self.tensor_parallel_size}; leave "
                "one of them out"
            )


class Attention(StrEnum):
    sdpa = "sdpa"
    """Runs everywhere. Batches documents of similar length; memory grows with their tokens, not with T^2.

    Two kinds of model need more for a document of L tokens: a sliding window narrower than L needs a mask [L, L]; soft caps
    keep the scores [heads, L, L] in fp32 for the backward pass, as every model does on a CPU for documents of up to 64 tokens.
    """
    flex = "flex"
    "Skips fully masked blocks of 128 x 128; its mask takes T^2 / 16,384. On a CPU it scores but does not train."
    flash = "flash"
    "Variable-length kernels of the flash-attn package: GPU and bfloat16 only."


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeConfig:
    """Shape of a Llama model."""

    num_layers: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    max_positions: int = 4096
    rope_theta: float = 10_000.0
    tie_embeddings: bool = True

    def __post_init__(self) -> None:
        for name in (
            "num_layers",
            "hidden_size",
            "intermediate_size",
            "num_heads",
            "num_kv_heads",
            "max_positions",
            "rope_theta",
        ):
            if not getattr(self, name) > 0:
                raise ConfigError(f"model.shape.{name} must be > 0, got {getattr(self, name)}")
        if self.hidden_size % self.num_heads or self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.shape needs hidden_size divisible by num_heads and num_heads by num_kv_heads, "
                f"got {self.hidden_size}, {self.num_heads}, {self.num_kv_heads}"
            )


class InitMethod(StrEnum):
    mean = "mean"
    "Mean of the old pieces that spell the new one (Hewitt 2021; ALLaM 2024)."
    random = "random"
    "Normal, with the old rows' mean and standard deviation in each dimension."
    global_mean = "global_mean"
    "Mean of all old rows."
    similarity = "similarity"
    "Weighted mean of old pieces with similar contexts in a text (FOCUS, Dobler and de Melo 2023)."
    donor = "donor"
    "The donor model's row of the piece, mapped into this model's space (Jais-adapted, Gosal et al. 2024)."


@dataclass(frozen=True, kw_only=True, slots=True)
class RowInitConfig:
    method: InitMethod = InitMethod.mean
    """Initialisation of the rows of new pieces. A piece unknown to similarity or donor takes the mean of its old pieces; padding
    rows always take the mean of all rows."""
    seed: int = 0
    "Seed of method=random."
    donor: str | None = None
    "Donor of method=donor: model/name@version, a local folder or a hub id, with a tokenizer that shares pieces with this one."

    def __post_init__(self) -> None:
        if (self.donor is None) == (self.method is InitMethod.donor):
            raise ConfigError(
                f"model.new_rows.donor is {self.donor} with method={self.method}; set it with method=donor and only then"
            )
        if self.seed and self.method is not InitMethod.random:
            raise ConfigError(
                f"model.new_rows.seed is {self.seed}, but method={self.method} is not random; drop it or set method=random"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    path: str | None = None
    "model/name@version, a local folder or a hub id to start from; null starts from random weights of `shape`."
    shape: ShapeConfig | None = None
    tokenizer: str | None = None
    "Tokenizer of the finished model; null keeps the one of `path`. After expansion: tokenizer/name@version."
    init_std: float = 0.02
    "Standard deviation of random weights."
    new_rows: RowInitConfig = field(default_factory=RowInitConfig)
    "Initialisation of the embedding rows that `tokenizer` adds to the model of `path`."

    def __post_init__(self) -> None:
        if not self.init_std > 0:
            raise ConfigError(f"model.init_std must be > 0, got {self.init_std}")
        if (self.path is None) == (self.shape is None):
            raise ConfigError(
                "model needs exactly one of path (start from a model) and shape (start from random weights)"
            )
        if self.path is None and self.tokenizer is None:
            raise ConfigError("model.tokenizer must be set when a model starts from random weights")
        if self.tokenizer is None and self.new_rows != RowInitConfig():
            raise ConfigError(
                f"model.new_rows.method={self.new_rows.method} has no effect without model.tokenizer; name the expanded tokenizer"
            )
        if self.path is None and self.new_rows != RowInitConfig():
            raise ConfigError(
                f"model.new_rows.method={self.new_rows.method} has no effect on a model that starts from random weights; "
                "set model.path, or drop it"
            )


ALL = "all"


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    """Names of the linear layers that get an adapter, or `all` for every linear layer of the blocks; never the embeddings,
    which no serving engine loads as LoRA."""
    use_rslora: bool = False
    "Whether the scale is alpha / sqrt(rank) instead of alpha / rank, which keeps high ranks learning (Kalajdzievski 2023)."
    use_dora: bool = False
    "Whether magnitudes of weight rows are trained beside directions (DoRA, Liu et al. 2024); vLLM needs it merged."

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"tuning.lora.rank must be >= 1, got {self.rank}")
        if not self.alpha > 0 or not 0 <= self.dropout < 1:
            raise ConfigError(
                f"tuning.lora needs alpha > 0 and dropout in 0..1, below 1, got {self.alpha:g} and {self.dropout:g}"
            )
        if not self.targets or (ALL in self.targets and len(self.targets) > 1):
            raise ConfigError(
                f"tuning.lora.targets must name layers, or be [{ALL}] for every one, got {list(self.targets)}"
            )
        banned = {"embed_tokens", "lm_head"} & set(self.targets)
        if banned:
            raise ConfigError(
                f"tuning.lora.targets names {min(banned)}: vLLM cannot load an adapter over the vocabulary; "
                "set tuning.rows=new or all, which trains rows and merges them"
            )
