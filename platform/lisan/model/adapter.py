"""LoRA adapters: attach, merge. The only file that knows PEFT.

In: a causal LM and a `LoraConfig`. Out: the same module with adapters in place. Always: a fresh adapter changes
nothing, and the merged model computes what the adapted one did.
"""

from dataclasses import dataclass
from typing import Any

from lisan.core.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    "Names of the linear layers that get an adapter; never the embeddings, which no serving engine loads as LoRA."

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"tuning.lora.rank must be >= 1, got {self.rank}")
        banned = {"embed_tokens", "lm_head"} & set(self.targets)
        if banned:
            raise ConfigError(
                f"tuning.lora.targets names {min(banned)}: vLLM cannot load an adapter over the vocabulary; "
                "train new rows with tuning=full and merge"
            )


def attach_adapter(model: Any, config: LoraConfig) -> Any:
    """Freeze the model and put LoRA into its target layers; returns PEFT's wrapper, whose inner model is changed in place."""
    from peft import LoraConfig as PeftConfig
    from peft import get_peft_model

    try:
        return get_peft_model(
            model,
            PeftConfig(
                r=config.rank,
                lora_alpha=config.alpha,
                lora_dropout=config.dropout,
                target_modules=list(config.targets),
                task_type="CAUSAL_LM",
            ),
        )
    except ValueError as error:
        raise ConfigError(f"tuning.lora.targets {list(config.targets)} fit no layer of the model: {error}") from error


def merge_adapter(wrapped: Any) -> Any:
    """Fold the adapters into the weights and return the plain model."""
    return wrapped.merge_and_unload()
