"""Fields of models: how one is found or made, laid on its workers, adapted and written.

Imports no torch: a job reads its config before it loads a library.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from lisan.core.errors import ConfigError

if TYPE_CHECKING:
    pass


class Recompute(StrEnum):
    """What the backward pass computes again instead of keeping it: activation checkpointing, block by block."""

    none = "none"
    selective = "selective"
    "All but the matrix products and the attention, which cost the most time."
    full = "full"
    "Everything between the inputs of two blocks: about a third more arithmetic."


@dataclass(frozen=True, kw_only=True, slots=True)
class ShardingConfig:
    """How a model lies on its workers. Not part of an artifact's identity: it moves results by the order of sums at most."""

    shard_workers: int = 0
    """Workers that hold one copy of the weights together; 0 takes those of one node. Where there are more, every such group
    holds a copy and only gradients go between groups (HSDP)."""
    tensor_workers: int = 1
    """How many neighbouring workers of those split the products of every block between them, on the same rows (tensor
    parallelism); 1 splits none. For models of which one block is too much for a GPU, or steps of few rows; on one node, for it
    sums activations seven times a block. Not yet run on a GPU."""
    recompute: Recompute = Recompute.none
    "What is computed again in the backward pass to save memory: none, selective or full."
    compile: bool = False
    "Whether torch.compile fuses the kernels of each block; the first step of every shape takes a minute. Needs a C++ compiler."

    def __post_init__(self) -> None:
        if self.shard_workers < 0:
            raise ConfigError(f"sharding.shard_workers must be >= 0, got {self.shard_workers}; 0 takes those of a node")
        if self.tensor_workers < 1:
            raise ConfigError(f"sharding.tensor_workers must be >= 1, got {self.tensor_workers}; 1 splits no block")
        if self.tensor_workers > 1 and self.compile:
            raise ConfigError(
                f"sharding.compile=true is not possible with sharding.tensor_workers={self.tensor_workers}; leave one of them out"
            )


class Attention(StrEnum):
    sdpa = "sdpa"
    """Everywhere. Documents of like length are computed side by side; memory grows with their tokens, not with T^2.

    Two kinds of model take more for a document of L tokens: a window narrower than L needs a mask [L, L]; soft caps keep its
    scores [heads, L, L] in fp32 for the backward pass (and so does every model on a CPU, of documents of up to 64 tokens).
    """
    flex = "flex"
    "Skips the blocks of 128 x 128 that nothing may look at; its mask costs a 16,384th of T^2. On a CPU it can score, not train."
    flash = "flash"
    "A GPU with the flash-attn package, bfloat16: documents by their lengths."


@dataclass(frozen=True, kw_only=True, slots=True)
class ShapeConfig:
    """A Llama-shaped model."""

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
    "Normal, with the mean and standard deviation that the old rows have in each dimension."
    global_mean = "global_mean"
    "Mean of all old rows."
    similarity = "similarity"
    "Weighted mean of the old pieces that keep similar company in a text (FOCUS, Dobler and de Melo 2023)."
    donor = "donor"
    "The row that a donor model has for the piece, mapped into this model's space (Jais-adapted, Gosal et al. 2024)."


@dataclass(frozen=True, kw_only=True, slots=True)
class RowInitConfig:
    method: InitMethod = InitMethod.mean
    """Where the row of a new piece begins. Pieces for which similarity or donor knows nothing take the mean of their old
    pieces; rows that no piece names are padding and take the mean of all rows, whatever the method."""
    seed: int = 0
    "Of method=random."
    donor: str | None = None
    "Of method=donor: model/name@version, a local folder or a hub id, with a tokenizer whose pieces this one shares."

    def __post_init__(self) -> None:
        if (self.donor is None) == (self.method is InitMethod.donor):
            raise ConfigError(
                f"model.new_rows.donor is {self.donor} with method={self.method}; set it with method=donor and only then"
            )
        if self.seed and self.method is not InitMethod.random:
            raise ConfigError(
                f"model.new_rows.seed is {self.seed}, but method={self.method} draws nothing; drop it or set method=random"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    path: str | None = None
    "model/name@version, a local folder or a hub id to start from; null starts from random weights of `shape`."
    shape: ShapeConfig | None = None
    tokenizer: str | None = None
    "Tokenizer that the finished model carries, when it is not the one it came with: tokenizer/name@version after expansion."
    init_std: float = 0.02
    "Standard deviation of random weights."
    new_rows: RowInitConfig = field(default_factory=RowInitConfig)
    "Where the embedding rows of pieces begin that `tokenizer` has and the model of `path` has not."

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
    "Whether magnitudes of the weights' rows are trained beside their directions (Liu et al. 2024); vLLM needs it merged."

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


GROUPS = (32, 64, 128)
"Group sizes for which vLLM has a kernel on GPUs (Marlin); each also is a multiple of what its CPU kernel wants, 32."


class GgufType(StrEnum):
    float32 = "float32"
    float16 = "float16"
    "Ten bits of mantissa: exact for most bfloat16 weights, and fast everywhere."
    bfloat16 = "bfloat16"
    q8_0 = "q8_0"
    "Blocks of 32 weights in 8 bits with one scale: half the size of float16."
