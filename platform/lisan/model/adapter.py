"""LoRA adapters: attach, merge, read back. The only file that knows PEFT.

In: a causal LM and a `LoraConfig`, or the folder of a finished adapter. Out: the same module with adapters in place. Always: a
fresh adapter changes nothing, the merged model computes what the adapted one did, and an adapter that was trained over new
rows finds the same rows again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.draw import Drawing, drawing
from lisan.model.fill import plain_name
from lisan.model.new_rows import NewRows, read_new_rows, replay_new_rows, write_new_rows

Gather = Callable[[torch.Tensor], torch.Tensor]
"Returns the whole of a sharded tensor, every rank calling it."


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


def draw_adapter(model: Any, config: LoraConfig, seed: int) -> tuple[Any, Drawing]:
    """Do as `attach_adapter` does, with random weights that are yet to be drawn, and return what draws them too."""
    with drawing(seed) as drawn:
        wrapper = attach_adapter(model, config, is_empty=True)
    drawn.keep(wrapper.base_model.model)
    return wrapper, drawn


def attach_adapter(model: Any, config: LoraConfig, is_empty: bool = False) -> Any:
    """Freeze the model and put LoRA into its target layers; returns PEFT's wrapper, whose inner model is changed in place.

    With `is_empty` the adapter's weights are on the device `meta`.
    """
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
            low_cpu_mem_usage=is_empty,
        )
    except ValueError as error:
        raise ConfigError(f"tuning.lora.targets {list(config.targets)} fit no layer of the model: {error}") from error


def iter_merged(model: nn.Module) -> Iterator[tuple[str, torch.Size, Callable[[Gather], torch.Tensor]]]:
    """Yield name, shape and maker of every weight of the model without adapters, in the model's order.

    A maker gathers what it needs, every rank calling it, and returns the whole weight, adapter merged where there is one.
    """
    from peft.tuners.lora import LoraLayer

    layers = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    for name, parameter in model.named_parameters():
        layer, _, own = name.partition(".base_layer.")
        if own == "weight":
            yield f"{layer}.weight", parameter.shape, partial(_merge_layer, layers[layer])
        elif own or not any(name.startswith(f"{adapted}.") for adapted in layers):
            yield plain_name(name), parameter.shape, partial(_gather_one, parameter)


def _gather_one(parameter: torch.Tensor, gather: Gather) -> torch.Tensor:
    return gather(parameter)


@torch.no_grad()
def _merge_layer(layer: Any, gather: Gather) -> torch.Tensor:
    """Let PEFT merge one layer, over whole copies of its weights in the place of their shards."""
    from torch.nn.utils.stateless import _reparametrize_module

    parts: dict[str, torch.Tensor] = dict(layer.named_parameters())
    whole: dict[str, torch.Tensor] = {
        name: nn.Parameter(gather(part).clone(), requires_grad=False) for name, part in parts.items()
    }
    with _reparametrize_module(layer, whole):
        layer.merge()
        layer.merged_adapters.clear()
    return whole["base_layer.weight"].detach()


def merge_adapter(wrapped: Any) -> Any:
    """Fold the adapters into the weights and return the plain model."""
    return wrapped.merge_and_unload()


def write_adapter(wrapped: Any, folder: Path | None, new_rows: Sequence[NewRows], gather: Gather) -> None:
    """Write the adapter alone, with the manifest of the rows that its base lacks; a rank without a folder only gathers.

    PEFT would add both matrices of a vocabulary that grew, which no engine loads and the manifest makes unnecessary.
    """
    state = {name: gather(parameter) for name, parameter in wrapped.named_parameters() if ".lora_" in name}
    if folder is None:
        return
    wrapped.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    write_new_rows(folder, new_rows)


def read_adapter(model: Any, folder: Path) -> Any:
    """Grow a base as the adapter's manifest says, where there is one, and put the finished adapter over it.

    Raises DataError when the base is not the one that the adapter was trained over.
    """
    from peft import PeftModel

    for manifest in read_new_rows(folder):
        replay_new_rows(model, manifest)
    return PeftModel.from_pretrained(model, str(folder))
