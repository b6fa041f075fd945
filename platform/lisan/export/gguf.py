"""Writes a Llama as one GGUF file for llama.cpp and Ollama, and reads it back. The only file that imports the `gguf` library.

`read_gguf` returns the weights that llama.cpp multiplies with, in transformers' order. llama.cpp rotates neighbouring dimensions
of a head (2i, 2i + 1), transformers rotates (i, i + d / 2), so that the rows of q_proj and k_proj are reordered. Tied output
embeddings are left out.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lisan.core.errors import ConfigError, DataError
from lisan.export.config import GgufType
from lisan.model.folder import read_config
from lisan.model.folder_tensors import iter_state

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM")
"Architectures that llama.cpp calls `llama`."
ROPES = ("default", "linear", "llama3")
MAX_FLOAT16 = 65504.0
BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm")


def check_gguf(folder: Path, gguf_type: GgufType) -> None:
    """Raise ConfigError for a model that a GGUF file of this type cannot represent."""
    config = read_config(folder)
    [name, *_] = config.architectures or ["an unknown architecture"]
    if name not in ARCHITECTURES:
        raise ConfigError(
            f"GGUF is written for {' and '.join(ARCHITECTURES)}, {folder} is {name}; leave gguf out of formats"
        )
    for key in ("attention_bias", "mlp_bias", "sliding_window", "quantization_config"):
        if getattr(config, key, None):
            raise ConfigError(f"GGUF is written for models without {key}, {folder} sets it; leave gguf out of formats")
    rope = config.rope_parameters["rope_type"]
    if rope not in ROPES:
        raise ConfigError(
            f"GGUF is written for rope_type {', '.join(ROPES)}, {folder} has {rope}; leave gguf out of formats"
        )
    for tensor_name, tensor in iter_state(folder):
        if gguf_type is GgufType.q8_0 and tensor.dim() == 2 and tensor.shape[1] % 32:
            raise ConfigError(
                f"gguf_type=q8_0 needs rows of a multiple of 32, {tensor_name} has {tensor.shape[1]}; set gguf_type=float16"
            )
        if gguf_type is GgufType.float16 and float(tensor.abs().amax()) > MAX_FLOAT16:
            raise ConfigError(
                f"gguf_type=float16 ends at {MAX_FLOAT16:.0f} and {tensor_name} goes beyond; set gguf_type=bfloat16"
            )


def write_gguf(folder: Path, file: Path, gguf_type: GgufType, name: str, tokenizer: Mapping[str, Any]) -> None:
    """Write weights, shape and `tokenizer`: metadata keys below `tokenizer.` with their values."""
    import gguf

    logging.getLogger("gguf").setLevel(logging.WARNING)
    config = read_config(folder)
    writer = gguf.GGUFWriter(str(file), "llama", use_temp_file=True)
    writer.add_name(name)
    _describe(writer, config, gguf_type)
    for key, value in tokenizer.items():
        _add(writer, f"tokenizer.{key}", value)
    for tensor_name, array in _tensors(folder, config):
        wanted = _quantisation(gguf_type if array.ndim > 1 else GgufType.float32)
        writer.add_tensor(tensor_name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(file: Path, config: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield the weights of a file under transformers' names, in fp32."""
    import gguf

    names = {theirs: ours for ours, theirs in _names(config).items()}
    for tensor in gguf.GGUFReader(str(file)).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        if tensor.name not in names:
            raise DataError(f"{file} holds {tensor.name}, which no Llama of this shape has; export it again")
        shape = [int(size) for size in reversed(tensor.shape)]
        array = gguf.quants.dequantize(np.asarray(tensor.data), tensor.tensor_type).reshape(shape)
        ours = names[tensor.name]
        heads = _num_heads(ours, config)
        yield ours, torch.from_numpy(np.array(restore_heads(array, heads) if heads else array, np.float32))


def interleave_heads(array: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    """Reorder the rows of each head for llama.cpp: 0, d/2, 1, d/2 + 1, ..."""
    return array.reshape(num_heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def restore_heads(array: np.ndarray[Any, Any], num_heads: int) -> np.ndarray[Any, Any]:
    return array.reshape(num_heads, -1, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def rope_factors(config: Any) -> np.ndarray[Any, Any] | None:
    """Return the divisor of each rotary frequency in Llama 3.1's scaling; None for other models."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    dim = config.head_dim
    wavelengths = 2 * math.pi * rope["rope_theta"] ** (np.arange(0, dim, 2, dtype=np.float64) / dim)
    ratio = rope["original_max_position_embeddings"] / wavelengths
    low, high, factor = rope["low_freq_factor"], rope["high_freq_factor"], rope["factor"]
    share = np.clip((ratio - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - share) / factor + share), np.float32)


def _tensors(folder: Path, config: Any) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    names = _names(config)
    factors = rope_factors(config)
    if factors is not None:
        yield "rope_freqs.weight", factors
    for name, tensor in iter_state(folder):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if name not in names:
            raise DataError(
                f"{folder} holds {name}, for which llama.cpp's llama has no tensor; leave gguf out of formats"
            )
        heads = _num_heads(name, config)
        array = tensor.float().numpy()
        yield names[name], np.ascontiguousarray(interleave_heads(array, heads)) if heads else array


def _names(config: Any) -> dict[str, str]:
    """Return llama.cpp's tensor names by transformers' names."""
    import gguf

    mapping = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    inside = [
        *BLOCK_NORMS,
        *(f"self_attn.{name}_proj" for name in "qkvo"),
        *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    ]
    blocks = [f"model.layers.{block}.{name}" for block in range(config.num_hidden_layers) for name in inside]
    return {
        f"{name}.weight": f"{mapping.get_name(name)}.weight"
        for name in ("model.embed_tokens", "model.norm", "lm_head", *blocks)
    }


def _num_heads(name: str, config: Any) -> int:
    """Return the number of heads of a reordered matrix; 0 for others."""
    if name.endswith("q_proj.weight"):
        return int(config.num_attention_heads)
    return int(config.num_key_value_heads) if name.endswith("k_proj.weight") else 0


def _quantisation(gguf_type: GgufType) -> Any:
    import gguf

    kinds = gguf.GGMLQuantizationType
    return {
        GgufType.float32: kinds.F32,
        GgufType.float16: kinds.F16,
        GgufType.bfloat16: kinds.BF16,
        GgufType.q8_0: kinds.Q8_0,
    }[gguf_type]


def _describe(writer: Any, config: Any, gguf_type: GgufType) -> None:
    import gguf

    kinds = gguf.LlamaFileType
    writer.add_file_type(
        {
            GgufType.float32: kinds.ALL_F32,
            GgufType.float16: kinds.MOSTLY_F16,
            GgufType.bfloat16: kinds.MOSTLY_BF16,
            GgufType.q8_0: kinds.MOSTLY_Q8_0,
        }[gguf_type]
    )
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if config.rope_parameters["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(config.rope_parameters["factor"])


def _add(writer: Any, key: str, value: Any) -> None:
    """Add a value with the GGUF type of its Python type; integers are unsigned, as llama.cpp reads ids."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)
