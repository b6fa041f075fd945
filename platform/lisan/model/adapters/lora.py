"""LoRA adapters: attach, merge, read back. The only file that knows PEFT.

In: a causal LM and a `LoraConfig`, or the folder of a finished adapter. Out: the same module with adapters in place. Always: a
fresh adapter changes nothing, the merged model computes what the adapted one did, and an adapter that was trained over new
rows finds the same rows again.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.adapters.nf4 import Nf4Linear, is_quantised, quantise_blocks, restore_linear
from lisan.model.config import ALL, LoraConfig
from lisan.model.embeddings.new_rows import NewRows, read_new_rows, replay_new_rows, write_new_rows
from lisan.model.embeddings.trained_rows import TRAINED_ROWS, place_trained_rows
from lisan.model.load import block_linears
from lisan.model.quiet import quiet_imports, quiet_transformers
from lisan.model.weights.load_shards import plain_name
from lisan.model.weights.random_weights import RandomWeights, record_random_weights

BASE = "quantised_base.json"
"Beside an adapter that was trained over a base in 4 bits."

Gather = Callable[[torch.Tensor], torch.Tensor]
"Returns the whole of a sharded tensor, every rank calling it."


def attach_random_adapter(model: Any, config: LoraConfig, seed: int) -> tuple[Any, RandomWeights]:
    """Do as `attach_adapter` does, with random weights that are yet to be drawn, and return what draws them too."""
    with record_random_weights(seed) as drawn:
        wrapper = attach_adapter(model, config, is_empty=True)
    drawn.name_parameters(wrapper.base_model.model)
    return wrapper, drawn


def attach_adapter(model: Any, config: LoraConfig, is_empty: bool = False) -> Any:
    """Freeze the model and put LoRA into its target layers; returns PEFT's wrapper, whose inner model is changed in place.

    With `is_empty` the adapter's weights are on the device `meta`. DoRA begins with the norms of the model's weights, which must
    be there.
    """
    quiet_transformers()
    with quiet_imports():
        from peft import LoraConfig as PeftConfig
        from peft import get_peft_model
    adapter = PeftConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=find_targets(model, config),
        use_rslora=config.use_rslora,
        use_dora=config.use_dora,
        task_type="CAUSAL_LM",
    )
    with quiet_imports():  # PEFT imports torchao and bitsandbytes when it makes the layers
        return get_peft_model(model, adapter, low_cpu_mem_usage=is_empty)


def find_targets(model: Any, config: LoraConfig) -> list[str]:
    """Return the names of the layers that get an adapter; ConfigError for one that the model has not."""
    found = {name: name.rpartition(".")[2] for name in block_linears(model)}
    known = sorted(set(found.values()))
    if config.targets == (ALL,):
        return known
    unknown = [target for target in config.targets if not any(f".{name}".endswith(f".{target}") for name in found)]
    if unknown:
        raise ConfigError(
            f"tuning.lora.targets names {', '.join(unknown)}, which fit no linear layer in the blocks of "
            f"{type(model).__name__}; it has {', '.join(known)}, and [{ALL}] means every one"
        )
    return list(config.targets)


def iter_merged(model: nn.Module) -> Iterator[tuple[str, Callable[[Gather], torch.Tensor]]]:
    """Yield name and maker of every weight of the model without adapters, in the model's order.

    A maker gathers what it needs, every rank calling it, and returns the whole weight: adapter merged where there is one, 4 bits
    restored where it is kept in them.
    """
    adapted = _adapted_layers(model)
    inside = tuple(f"{name}.lora_" for name in adapted)
    seen: set[int] = set()
    for name, module in model.named_modules():
        if name in adapted:
            yield f"{name}.weight", partial(_merge_layer, adapted[name])
        elif isinstance(module, Nf4Linear) and name.removesuffix(".base_layer") not in adapted:
            yield f"{name}.weight", partial(_restore_one, module)
        for own, parameter in module.named_parameters(recurse=False):
            is_merged = own == "weight" and name.removesuffix(".base_layer") in adapted
            if not is_merged and not f"{name}.".startswith(inside) and id(parameter) not in seen:
                seen.add(id(parameter))
                yield plain_name(f"{name}.{own}"), partial(_gather_one, parameter)
        for own, buffer in module.named_buffers(recurse=False):
            if own not in module._non_persistent_buffers_set:
                yield plain_name(f"{name}.{own}"), partial(_gather_one, buffer)


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    if not any(".lora_" in name for name, _ in model.named_modules()):
        return {}  # PEFT takes seconds to import
    with quiet_imports():
        from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}


def _gather_one(parameter: torch.Tensor, gather: Gather) -> torch.Tensor:
    return gather(parameter)


def _restore_one(layer: Nf4Linear, gather: Gather) -> torch.Tensor:  # noqa: ARG001
    return layer.weight


@torch.no_grad()
def _merge_layer(layer: Any, gather: Gather) -> torch.Tensor:
    """Let PEFT merge one layer, over whole copies of its weights in the place of their shards."""
    from torch.nn.utils.stateless import _reparametrize_module

    base = layer.base_layer
    if isinstance(base, Nf4Linear):
        layer.base_layer = restore_linear(base)
    parts: dict[str, torch.Tensor] = dict(layer.named_parameters())
    whole: dict[str, torch.Tensor] = {
        name: nn.Parameter(gather(part).clone(), requires_grad=False) for name, part in parts.items()
    }
    with _reparametrize_module(layer, whole):
        layer.merge()
        layer.merged_adapters.clear()
    layer.base_layer = base
    return whole["base_layer.weight"].detach()


def write_adapter(wrapped: Any, folder: Path | None, new_rows: Sequence[NewRows], gather: Gather) -> None:
    """Write the adapter alone, with the manifest of the rows that its base lacks, and a mark where the base was in 4 bits.

    A rank without a folder only gathers.

    PEFT would add both matrices of a vocabulary that grew, which no engine loads and the manifest makes unnecessary.
    """
    state = {name: gather(parameter) for name, parameter in wrapped.named_parameters() if ".lora_" in name}
    if folder is None:
        return
    wrapped.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    write_new_rows(folder, new_rows)
    if is_quantised(wrapped):
        note_base(folder)


def note_base(folder: Path, **figures: float) -> None:
    """Say beside an adapter that its base was in 4 bits, and what was measured."""
    (folder / BASE).write_text(json.dumps({"quantise_base": "nf4", **figures}), encoding="utf-8")


def read_adapter(model: Any, folder: Path, as_trained: bool = True) -> Any:
    """Grow a base as the adapter's manifest says, where there is one, put trained rows there and the finished adapter over it.

    The base is rounded to 4 bits where the adapter was trained over such a one, unless `as_trained` is false: an engine that
    keeps it in 16 bits computes something else. Raises DataError when the base is not the one that it was trained over.
    """
    quiet_transformers()
    with quiet_imports():
        from peft import PeftModel

    manifests = read_new_rows(folder)
    if (folder / TRAINED_ROWS).exists():
        place_trained_rows(model, folder, manifests[-1] if manifests else None)
    else:
        for manifest in manifests:
            replay_new_rows(model, manifest)
    if as_trained and (folder / BASE).exists():
        quantise_blocks(model)
    with quiet_imports():
        return PeftModel.from_pretrained(model, str(folder))
