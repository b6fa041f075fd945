"""Attaches, merges and reads LoRA adapters. The only file that imports PEFT.

A fresh adapter changes nothing, and a merged model computes what the adapted one did. An adapter trained over new embedding
rows restores these rows on its base.
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
from lisan.model.embeddings.trained_rows import TRAINED_ROWS, load_trained_rows
from lisan.model.load import block_linears
from lisan.model.quiet import quiet_imports, quiet_transformers
from lisan.model.weights.load_shards import plain_name
from lisan.model.weights.random_weights import RandomWeights, record_random_weights

BASE = "quantised_base.json"
"File beside an adapter that was trained over a 4-bit base."

Gather = Callable[[torch.Tensor], torch.Tensor]
"Returns the whole of a sharded tensor; every rank calls it."


def attach_random_adapter(model: Any, config: LoraConfig, seed: int) -> tuple[Any, RandomWeights]:
    """Attach an adapter on `meta` and return it with its seeded random weights."""
    with record_random_weights(seed) as drawn:
        wrapper = attach_adapter(model, config, is_empty=True)
    drawn.name_parameters(wrapper.base_model.model)
    return wrapper, drawn


def attach_adapter(model: Any, config: LoraConfig, is_empty: bool = False) -> Any:
    """Freeze the model and add LoRA to its target layers in place; returns PEFT's wrapper.

    With `is_empty` the adapter's weights are on `meta`. DoRA starts from the norms of the model's weights, which must be
    loaded.
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
    """Return the names of the layers that get an adapter; ConfigError for a target that the model lacks."""
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
    """Yield the name of every weight of the merged model, in the model's order, with a function that computes it.

    The function takes `gather`, which every rank calls, and returns the whole weight: merged if adapted, dequantised if in 4 bits.
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
    """Merge one layer with PEFT, with whole copies of its weights in place of the shards."""
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
    """Write the adapter, the manifest of new rows, and a note when the base was in 4 bits. A rank without a folder only gathers.

    PEFT would also write both matrices of an expanded vocabulary, which no engine loads and the manifest makes unnecessary.
    """
    state = {name: gather(parameter) for name, parameter in wrapped.named_parameters() if ".lora_" in name}
    if folder is None:
        return
    wrapped.save_pretrained(folder, save_embedding_layers=False, state_dict=state)
    write_new_rows(folder, new_rows)
    if is_quantised(wrapped):
        note_base(folder)


def note_base(folder: Path, **figures: float) -> None:
    """Write beside an adapter that its base was in 4 bits, with measured figures."""
    (folder / BASE).write_text(json.dumps({"quantise_base": "nf4", **figures}), encoding="utf-8")


def read_adapter(model: Any, folder: Path, as_trained: bool = True) -> Any:
    """Expand a base by the adapter's manifest, load its trained rows, and attach the adapter.

    A base that was in 4 bits in training is quantised again, unless `as_trained` is false: engines keep the base in 16 bits.
    DataError when the base is another than in training.
    """
    quiet_transformers()
    with quiet_imports():
        from peft import PeftModel

    manifests = read_new_rows(folder)
    if (folder / TRAINED_ROWS).exists():
        load_trained_rows(model, folder, manifests[-1] if manifests else None)
    else:
        for manifest in manifests:
            replay_new_rows(model, manifest)
    if as_trained and (folder / BASE).exists():
        quantise_blocks(model)
    with quiet_imports():
        return PeftModel.from_pretrained(model, str(folder))
