"""LoRA adapters: attach, merge, read back. The only file that knows PEFT.

In: a causal LM and a `LoraConfig`, or the folder of a finished adapter. Out: the same module with adapters in place. Always: a
fresh adapter changes nothing, the merged model computes what the adapted one did, and an adapter that was trained over new
rows finds the same rows again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lisan.core.errors import ConfigError
from lisan.model.new_rows import NewRows, read_new_rows, replay_new_rows, write_new_rows
from lisan.model.trained_rows import TRAINED_ROWS, place_trained_rows


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


def write_adapter(wrapped: Any, folder: Path, new_rows: Sequence[NewRows]) -> None:
    """Write the adapter alone, with the manifest of the rows that its base lacks.

    PEFT would add both matrices of a vocabulary that grew, which no engine loads and the manifest makes unnecessary.
    """
    wrapped.save_pretrained(folder, save_embedding_layers=False)
    write_new_rows(folder, new_rows)


def read_adapter(model: Any, folder: Path) -> Any:
    """Grow a base as the adapter's manifest says, where there is one, put trained rows there and the finished adapter over it.

    Raises DataError when the base is not the one that the adapter was trained over.
    """
    from peft import PeftModel

    manifests = read_new_rows(folder)
    if (folder / TRAINED_ROWS).exists():
        place_trained_rows(model, folder, manifests[-1] if manifests else None)
    else:
        for manifest in manifests:
            replay_new_rows(model, manifest)
    return PeftModel.from_pretrained(model, str(folder))
