"""Rounds weights to 8 or 4 bits in the compressed-tensors layout, which vLLM loads directly.

Linear layers are rounded to nearest; embeddings, norms and the output layer stay as they are. `read_quantised` returns exactly the
numbers that the engine multiplies with.

int8: one scale per output channel, activations rounded to 8 bits per token (W8A8, dynamic).
int4: one scale per `group` inputs of a channel, activations unchanged (W4A16).
Shapes: O outputs, I inputs, G groups of a row.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.export.config import INT4_GROUPS
from lisan.model.folder import read_config, read_corrected_json
from lisan.model.folder_tensors import assemble, block_names, iter_state, linear_names, parameter_names
from lisan.model.weights.safetensors_files import MAX_FILE_BYTES, WeightWriter, locate_tensors

PACKED = 8
"Values of four bits in an int32, the first in the lowest."


def quantise_rows(
    weight_OI: torch.Tensor, num_bits: int, group: int, scale_type: torch.dtype = torch.float32
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round to nearest, symmetrically: integers [O, I] as int8 and scales [O, G] of `scale_type`.

    Worked example: num_bits = 4, one group [-7.0, 3.6, 0.4] has scale 7 / 7 = 1 and becomes [-7, 4, 0].
    """
    top = 2 ** (num_bits - 1) - 1
    groups_OGg = weight_OI.float().unflatten(1, (-1, group))
    scale_OG = (groups_OGg.abs().amax(-1) / top).clamp_min(torch.finfo(scale_type).tiny).to(scale_type)
    rounded = (groups_OGg / scale_OG.float()[..., None]).round_().clamp_(-top, top)
    return rounded.flatten(1).to(torch.int8), scale_OG


def restore_rows(integers_OI: torch.Tensor, scale_OG: torch.Tensor) -> torch.Tensor:
    """Return the dequantised fp32 weights [O, I]."""
    group = integers_OI.shape[1] // scale_OG.shape[1]
    weight_OI: torch.Tensor = (integers_OI.float().unflatten(1, (-1, group)) * scale_OG.float()[..., None]).flatten(1)
    return weight_OI


def pack_rows(integers_OI: torch.Tensor) -> torch.Tensor:
    """Pack four-bit integers -8 .. 7 into int32 [O, I / 8], each as itself plus 8."""
    shifts = 4 * torch.arange(PACKED)
    words = ((integers_OI.to(torch.int64) + 8).unflatten(1, (-1, PACKED)) << shifts).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def unpack_rows(packed: torch.Tensor) -> torch.Tensor:
    shifts = 4 * torch.arange(PACKED)
    return (((packed.to(torch.int64)[..., None] >> shifts) & 15) - 8).flatten(1).to(torch.int8)


def check_quantisable(folder: Path, num_bits: int, group: int) -> None:
    """Raise ConfigError for a quantised model, one with other matrices than linear layers, or a group that does not divide."""
    config = read_config(folder)
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"int{num_bits} of {folder}: the model is quantised already; export the one it was made from")
    shapes = {name: shape for name, (_, shape) in locate_tensors(folder).items()}
    layers = linear_names(config)
    _check_layers(config, layers, shapes, f"int{num_bits} of {folder}")
    for name in layers:
        inputs = shapes[f"{name}.weight"][1]
        if num_bits == 4 and inputs % group:
            fitting = [str(size) for size in INT4_GROUPS if inputs % size == 0]
            remedy = f"set int4_group={fitting[-1]}" if fitting else "export int8 instead"
            raise ConfigError(f"int4_group {group} does not divide the {inputs} inputs of {name}; {remedy}")


def _check_layers(config: Any, layers: tuple[str, ...], shapes: Mapping[str, tuple[int, ...]], subject: str) -> None:
    """Refuse blocks with other matrices than linear layers (experts, Conv1D), and unknown tensor names.

    The engine would look for scales of matrices that were not quantised, and `read_quantised` would refuse unknown names only
    after everything was written.
    """
    wanted, known = {f"{name}.weight" for name in layers}, parameter_names(config)
    blocks = tuple(f"{name}." for name in block_names(config))
    other = [
        name for name, shape in shapes.items() if len(shape) > 1 and name.startswith(blocks) and name not in wanted
    ]
    reason = None
    if not layers:
        reason = "the model has no linear layers in its blocks"
    elif missing := sorted(wanted - shapes.keys()):
        reason = f"its files have no {missing[0]}, which the model has"
    elif other:
        reason = f"{min(other)} is no linear layer of the model and would stay as it is"
    elif unknown := sorted(shapes.keys() - known):
        reason = f"its files have {unknown[0]}, which the model has not under that name"
    if reason:
        raise ConfigError(f"{subject}: {reason}; leave int8 and int4 out of formats")


def write_quantised(source: Path, folder: Path, num_bits: int, group: int, max_bytes: int = MAX_FILE_BYTES) -> None:
    """Write config.json and the weights of `source` with linear layers in `num_bits` bits; `group` applies to 4 bits."""
    config = read_config(source)
    layers = {f"{name}.weight" for name in linear_names(config)}
    written = WeightWriter(folder, max_bytes)
    for name, tensor in iter_state(source):
        if name not in layers:
            written.add(name, tensor)
            continue
        if num_bits == 8:
            integers, scale = quantise_rows(tensor, 8, tensor.shape[1])
            written.add(name, integers)
            written.add(f"{name}_scale", scale)
        else:
            # The engine keeps scales in the model's dtype, so they are rounded before use here too.
            integers, scale = quantise_rows(tensor, 4, group, tensor.dtype)
            written.add(f"{name}_packed", pack_rows(integers))
            written.add(f"{name}_scale", scale)
            written.add(f"{name}_shape", torch.tensor(tensor.shape))
    written.close()
    plain = read_corrected_json(source)
    plain["quantization_config"] = describe(num_bits, group)
    (folder / "config.json").write_text(json.dumps(plain, indent=2, ensure_ascii=False), encoding="utf-8")


def describe(num_bits: int, group: int) -> dict[str, Any]:
    """Return the `quantization_config` of config.json, which vLLM and transformers read."""
    weights = {"num_bits": num_bits, "type": "int", "symmetric": True, "dynamic": False}
    weights |= {"strategy": "channel"} if num_bits == 8 else {"strategy": "group", "group_size": group}
    activations = {"num_bits": 8, "type": "int", "symmetric": True, "dynamic": True, "strategy": "token"}
    layers = {
        "targets": ["Linear"],
        "weights": weights,
        "input_activations": activations if num_bits == 8 else None,
        "output_activations": None,
    }
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized" if num_bits == 8 else "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": layers},
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
    }


def read_quantised(folder: Path) -> Any:
    """Return the model that `write_quantised` wrote, in fp32, with activations rounded as in the engine."""
    config = read_config(folder)
    plain = config.quantization_config
    rounds = (plain if isinstance(plain, dict) else plain.to_dict())["format"] == "int-quantized"
    layers = linear_names(config)
    del config.quantization_config
    model = assemble(config, _restored(folder, layers), str(folder))
    if rounds:
        for name in layers:
            model.get_submodule(name).register_forward_pre_hook(_round_activations)
    return model


def _restored(folder: Path, layers: tuple[str, ...]) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield dequantised weights; the parts of a layer may come in any order, and from two files."""
    parts: dict[str, dict[str, torch.Tensor]] = {f"{name}.weight": {} for name in layers}
    for name, tensor in iter_state(folder):
        layer = name.removesuffix("_packed").removesuffix("_scale").removesuffix("_shape")
        if layer not in parts:
            yield name, tensor
            continue
        found = parts[layer]
        found[name.removeprefix(layer)] = tensor
        if "_scale" in found and ("" in found or "_packed" in found):
            integers = found.pop("") if "" in found else unpack_rows(found.pop("_packed"))
            yield layer, restore_rows(integers, found.pop("_scale"))


def _round_activations(_: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
    """Round each token's activations to 8 bits, as W8A8 with dynamic scales does before a product."""
    tokens = inputs[0].flatten(0, -2)
    return (restore_rows(*quantise_rows(tokens, 8, tokens.shape[-1])).view_as(inputs[0]),)
