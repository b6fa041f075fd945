"""Reads the folder of a causal LM without its weights: config, tensor names, files and shapes.

Refuses a folder for which transformers would make random weights: one that lacks a weight of the model of `config.json`,
or has it under another name or in another shape. Also refuses an adapter without its base, and unknown weights.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lisan.core.errors import DataError, first_line
from lisan.model.load_report import refuse_incomplete
from lisan.model.model_files import ADAPTER_CONFIG, CONFIG, GENERATION, fetch_weights, read_json, refuse_broken_json
from lisan.model.quiet import print_once, quiet_transformers
from lisan.model.weights.safetensors_files import list_weights, locate_tensors, open_weights

TEXT = re.compile(r"(?:model\.)?language_model\.(.+)")
"Names of the text part's weights in a multimodal model, in both layouts that transformers writes."


class StoredTensor(NamedTuple):
    """A tensor in a safetensors file."""

    file: Path
    name: str
    "Name in the file."
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A complete causal LM on disk."""

    path: Path
    config: Any
    "Config of the causal LM; of a multimodal model, the config of its text part."
    tensors: Mapping[str, StoredTensor]
    """By the causal LM's names. Empty for weights that only transformers can read: quantised ones, and other formats than
    safetensors."""


def open_folder(name_or_path: str) -> ModelFolder:
    """Return the model of a local folder or hub id; DataError when it is not a complete causal LM.

    Prints once in a process which weights are left out, and where config.json is corrected.
    """
    path = fetch_weights(name_or_path)
    refuse_adapter_alone(path, name_or_path)
    config = read_config(name_or_path)
    if getattr(config, "quantization_config", None) is not None or not list_weights(path):
        return ModelFolder(path, config, {})
    tensors = name_tensors(path, name_or_path, config)
    if config.tie_word_embeddings:
        for copy, _ in _both_of_pairs(config, tensors, name_or_path):
            del tensors[copy]
    shapes = {name: stored.shape for name, stored in tensors.items()}
    refuse_incomplete(model_class(config, name_or_path), config, shapes, name_or_path)
    return ModelFolder(path, config, tensors)


def check_folder(name_or_path: str | Path) -> None:
    """Refuse a local folder that `open_folder` refuses; a hub id is not checked, because that would download it."""
    if Path(name_or_path).is_dir():
        open_folder(str(name_or_path))


def read_config(name_or_path: str | Path) -> Any:
    """Return the config of the causal LM of a folder or hub id; of a multimodal model, the config of its text part."""
    from transformers import AutoConfig

    quiet_transformers()
    refuse_broken_json(Path(name_or_path) / CONFIG)
    try:
        config = AutoConfig.from_pretrained(str(name_or_path))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise DataError(f"{name_or_path} is not a model that transformers can load: {reason}") from error
    text = config.get_text_config()
    model_class(text, name_or_path)
    if text is not config:
        text.tie_word_embeddings = config.tie_word_embeddings
        text.dtype = config.dtype or text.dtype
    if text.tie_word_embeddings and Path(name_or_path).is_dir() and _holds_two_matrices(Path(name_or_path), text):
        text.tie_word_embeddings = False
        print_once(
            f"  {name_or_path}: {CONFIG} says tie_word_embeddings and the files hold two different matrices, which stay two"
        )
    return text


def read_corrected_json(path: Path) -> dict[str, Any]:
    """Return config.json, with `tie_word_embeddings` corrected to match the weights."""
    plain = read_json(path / CONFIG)
    if read_config(path).tie_word_embeddings is False and plain.get("tie_word_embeddings", True):
        plain["tie_word_embeddings"] = False
    return plain


def read_generation(name_or_path: str) -> dict[str, Any]:
    """Return the generation settings of a folder or hub id; without any of its own, only `eos_token_id` of config.json."""
    path = fetch_weights(name_or_path)
    found = read_json(path / GENERATION) if (path / GENERATION).exists() else {}
    if found.get("_from_model_config"):
        found = {}
    ends = found.get("eos_token_id", read_json(path / CONFIG).get("eos_token_id"))
    return {**found, "eos_token_id": ends}


def model_class(config: Any, name_or_path: str | Path) -> Any:
    """Return the causal LM class of a config; DataError when transformers has none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise DataError(
            f"{name_or_path} is not a model that transformers can load: {type(config).__name__} has no causal language model; "
            "name a "
            "model of text"
        ) from None


def refuse_adapter_alone(path: Path, name_or_path: str) -> None:
    """Refuse an adapter without its base; print that an adapter beside a whole model is not applied."""
    if not (path / ADAPTER_CONFIG).exists():
        return
    if (path / CONFIG).exists() and any(not name.startswith("adapter_model") for name in list_weights(path)):
        print_once(
            f"  {name_or_path}: the weights are taken as they are; the adapter of {ADAPTER_CONFIG} is not applied to them"
        )
        return
    base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "its base, which it does not name"
    raise DataError(
        f"{name_or_path} holds an adapter only ({ADAPTER_CONFIG}) and no whole model; merge it into {base} first (PEFT's "
        "merge_and_unload, then save_pretrained) and name that folder"
    )


def name_tensors(path: Path, name_or_path: str, config: Any) -> dict[str, StoredTensor]:
    """Return the stored tensors of a folder by their names in the causal LM of `config`."""
    stored = {name: StoredTensor(file, name, shape) for name, (file, shape) in locate_tensors(path).items()}
    if read_json(path / CONFIG).get("model_type") == config.model_type:
        return stored
    base = model_class(config, name_or_path).base_model_prefix
    named = {text: found for name, found in stored.items() if (text := _text_name(name, base)) is not None}
    others = sorted({name.removeprefix("model.").split(".")[0] for name in stored} - {"language_model", "lm_head"})
    print_once(
        f"  {name_or_path}: the text part is taken, as {model_class(config, name_or_path).__name__}; "
        f"{len(stored) - len(named)} weights of {', '.join(others) or 'other parts'} are left out"
    )
    return named


def _text_name(name: str, base: str) -> str | None:
    if name.startswith("lm_head."):
        return name
    if (found := TEXT.fullmatch(name)) is None:
        return None
    rest = found[1]
    return rest if rest.startswith((f"{base}.", "lm_head.")) else f"{base}.{rest}"


def _both_of_pairs(config: Any, tensors: Mapping[str, StoredTensor], name_or_path: str | Path) -> list[tuple[str, str]]:
    """Return the tied pairs (copy, original) that are both in the files."""
    pairs = getattr(model_class(config, name_or_path), "_tied_weights_keys", None) or {}
    return [(copy, of) for copy, of in dict(pairs).items() if copy in tensors and of in tensors]


def _holds_two_matrices(path: Path, config: Any) -> bool:
    """Tell whether matrices that config.json ties differ in the files; equal ones are copies."""
    if getattr(config, "quantization_config", None) is not None or not list_weights(path):
        return False
    tensors = name_tensors(path, str(path), config)
    return any(
        not torch.equal(_read(tensors[copy]), _read(tensors[of])) for copy, of in _both_of_pairs(config, tensors, path)
    )


def _read(stored: StoredTensor) -> torch.Tensor:
    with open_weights(stored.file) as opened:
        tensor: torch.Tensor = opened.get_tensor(stored.name)
        return tensor
