"""Looks at the folder of a causal LM without reading its weights: config, names, files and shapes.

A folder is refused where transformers would put random weights: a weight that the model of `config.json` needs is missing, has
another name or another shape. So is a folder of an adapter alone, and one with weights that the model has no place for.
"""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lisan.core.errors import DataError, first_line
from lisan.model.weights.safetensors_files import WEIGHTS, list_weights, locate_tensors, open_weights

CONFIG = "config.json"
GENERATION = "generation_config.json"
ADAPTER_CONFIG = "adapter_config.json"
WRAPPERS = {
    "_orig_mod.": "torch.compile; save its _orig_mod instead",
    "module.": "DistributedDataParallel; save its module instead",
    "_fsdp_wrapped_module.": "FSDP; save its full state dict instead",
    "base_model.model.": "PEFT; save what its merge_and_unload() returns instead",
}
"Prefixes that a wrapper around the model puts before every name, with the wrapper and the remedy."
HARMLESS = re.compile(r"(\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(masked_)?bias|(^|\.)position_ids)$")
"Buffers that older versions of transformers stored; they are computed now."
TEXT = re.compile(r"(?:model\.)?language_model\.(.+)")
"The text part's weights in a model that also has others, in both layouts that transformers writes."


class Stored(NamedTuple):
    """Where a tensor lies."""

    file: Path
    name: str
    "In the file."
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Folder:
    """A causal LM on disk: complete, or read by transformers alone."""

    path: Path
    config: Any
    "Of the causal LM; of a model with images or sound beside its text, that of the text part."
    tensors: Mapping[str, Stored]
    """By the names that the causal LM has. Empty where transformers alone knows how to read the weights: quantised ones, and
    files that are not safetensors."""


def open_folder(place: str) -> Folder:
    """Return what lies in a local folder, or behind a hub id; DataError when it is no whole causal LM.

    What is left out or read otherwise than config.json says is printed, once in a process.
    """
    path = fetch_weights(place)
    refuse_adapter_alone(path, place)
    config = read_config(place)
    if getattr(config, "quantization_config", None) is not None or not list_weights(path):
        return Folder(path, config, {})
    tensors = name_tensors(path, place, config)
    if config.tie_word_embeddings:
        for copy, _ in _both_of_pairs(config, tensors, place):
            del tensors[copy]
    refuse_incomplete(config, tensors, place)
    return Folder(path, config, tensors)


def check_folder(place: str | Path) -> None:
    """Refuse what `open_folder` refuses, of a local folder; what a hub id holds is first seen by whoever loads it."""
    if Path(place).is_dir():
        open_folder(str(place))


def read_config(place: str | Path) -> Any:
    """Return the config of the causal LM of a folder or hub id; of a model with images or sound, that of its text part."""
    from transformers import AutoConfig

    quiet_transformers()
    _refuse_broken_json(Path(place) / CONFIG)
    try:
        config = AutoConfig.from_pretrained(str(place))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = first_line(error)
        raise DataError(f"{place} is not a model that transformers can load: {reason}") from error
    text = config.get_text_config()
    model_class(text, place)
    if text is not config:
        text.tie_word_embeddings = config.tie_word_embeddings
        text.dtype = config.dtype or text.dtype
    if text.tie_word_embeddings and Path(place).is_dir() and _holds_two_matrices(Path(place), text):
        text.tie_word_embeddings = False
        say_once(
            f"  {place}: {CONFIG} says tie_word_embeddings and the files hold two different matrices, which stay two"
        )
    return text


def read_corrected_json(path: Path) -> dict[str, Any]:
    """Return what config.json says, with `tie_word_embeddings` as the weights have it."""
    plain = read_json(path / CONFIG)
    if read_config(path).tie_word_embeddings is False and plain.get("tie_word_embeddings", True):
        plain["tie_word_embeddings"] = False
    return plain


def read_generation(place: str) -> dict[str, Any]:
    """Return the generation settings of a folder or hub id; where nobody chose any, the ends of a text from config.json alone."""
    path = fetch_weights(place)
    found = read_json(path / GENERATION) if (path / GENERATION).exists() else {}
    if found.get("_from_model_config"):
        found = {}
    ends = found.get("eos_token_id", read_json(path / CONFIG).get("eos_token_id"))
    return {**found, "eos_token_id": ends}


def model_class(config: Any, place: str | Path) -> Any:
    """Return the class of the causal LM of a config; DataError when transformers has none."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    try:
        return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    except KeyError:
        raise DataError(
            f"{place} is not a model that transformers can load: {type(config).__name__} has no causal language model; name a "
            "model of text"
        ) from None


def fetch_weights(place: str) -> Path:
    """Return a local folder with the weights of a local folder or hub id; of a hub id's files those that transformers reads."""
    if Path(place).is_dir():
        return Path(place)
    folder = _fetch(place, ["*.json", WEIGHTS])
    shards = [name for name in list_weights(folder) if not (folder / name).exists()]
    return _fetch(place, shards) if shards else folder


def _fetch(place: str, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(place, allow_patterns=patterns))
    except (OSError, ValueError) as error:
        reason = first_line(error)
        raise DataError(f"{place} is not a model that transformers can load: {reason}") from error


def refuse_adapter_alone(path: Path, place: str) -> None:
    """Refuse a folder of an adapter without its base. Beside a whole model an adapter is not applied, which is printed."""
    if not (path / ADAPTER_CONFIG).exists():
        return
    if (path / CONFIG).exists() and any(not name.startswith("adapter_model") for name in list_weights(path)):
        say_once(
            f"  {place}: the weights are taken as they are; the adapter of {ADAPTER_CONFIG} is not applied to them"
        )
        return
    base = read_json(path / ADAPTER_CONFIG).get("base_model_name_or_path") or "its base, which it does not name"
    raise DataError(
        f"{place} holds an adapter only ({ADAPTER_CONFIG}) and no whole model; merge it into {base} first (PEFT's "
        "merge_and_unload, then save_pretrained) and name that folder"
    )


def name_tensors(path: Path, place: str, config: Any) -> dict[str, Stored]:
    """Return the stored tensors of a folder by the names that the causal LM of `config` has for them."""
    stored = {name: Stored(file, name, shape) for name, (file, shape) in locate_tensors(path).items()}
    if read_json(path / CONFIG).get("model_type") == config.model_type:
        return stored
    base = model_class(config, place).base_model_prefix
    named = {text: found for name, found in stored.items() if (text := _text_name(name, base)) is not None}
    others = sorted({name.removeprefix("model.").split(".")[0] for name in stored} - {"language_model", "lm_head"})
    say_once(
        f"  {place}: the text part is taken, as {model_class(config, place).__name__}; "
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


def _both_of_pairs(config: Any, tensors: Mapping[str, Stored], place: str | Path) -> list[tuple[str, str]]:
    """Return the pairs of weights that the model ties, copy and original, of which the files hold both."""
    pairs = getattr(model_class(config, place), "_tied_weights_keys", None) or {}
    return [(copy, of) for copy, of in dict(pairs).items() if copy in tensors and of in tensors]


def _holds_two_matrices(path: Path, config: Any) -> bool:
    """Tell whether the files hold different matrices where config.json says that they are one; equal ones are copies."""
    if getattr(config, "quantization_config", None) is not None or not list_weights(path):
        return False
    tensors = name_tensors(path, str(path), config)
    return any(
        not torch.equal(_read(tensors[copy]), _read(tensors[of])) for copy, of in _both_of_pairs(config, tensors, path)
    )


def _read(stored: Stored) -> torch.Tensor:
    with open_weights(stored.file) as opened:
        tensor: torch.Tensor = opened.get_tensor(stored.name)
        return tensor


def refuse_incomplete(config: Any, tensors: Mapping[str, Stored], place: str) -> None:
    """Refuse files that are not the weights of the model of `config`, whole and of its shapes; no weight is read.

    Transformers itself compares: it knows the names of fused and renamed weights.
    """
    kind = model_class(config, place)
    state = {name: torch.empty(stored.shape, device="meta") for name, stored in tensors.items()}
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map="meta",
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_report(report, list(model.state_dict()), kind.__name__, place)


def refuse_report(report: Mapping[str, Iterable[Any]], order: list[str], kind: str, place: str) -> None:
    """Raise DataError for what transformers' report of a load holds: missing, unexpected and misshapen weights."""
    unexpected = sorted(name for name in report["unexpected_keys"] if not HARMLESS.search(name))
    for prefix, wrapper in WRAPPERS.items():
        if any(name.startswith(prefix) for name in unexpected):
            raise DataError(f"{place} names its weights {prefix}*: they were saved from inside {wrapper}")
    if shapes := sorted(report["mismatched_keys"]):
        name, found, wanted = shapes[0]
        raise DataError(
            f"{place} holds {name} {list(found)} and {kind} of its {CONFIG} has {list(wanted)}{_more(shapes)}; one of the two is "
            "of another model: copy both again"
        )
    missing = set(report["missing_keys"])
    if missing:
        first = next((name for name in order if name in missing), min(missing))
        remedy = "correct tie_word_embeddings if its embeddings are one matrix, or " if "lm_head" in first else ""
        raise DataError(
            f"{place} lacks {first}, which {kind} of its {CONFIG} needs{_more(missing)}; {remedy}copy or save the model again"
        )
    if unexpected:
        raise DataError(
            f"{place} holds {unexpected[0]}, for which {kind} of its {CONFIG} has no place{_more(unexpected)}; correct {CONFIG} "
            "(num_hidden_layers, architectures), or save the model again without it"
        )


def _more(names: Any) -> str:
    return f" ({len(names)} weights in all)" if len(names) > 1 else ""


def read_json(file: Path) -> dict[str, Any]:
    """Return the object of a JSON file; DataError where it is cut off or holds something else, and where there is none."""
    _refuse_broken_json(file)
    try:
        found: dict[str, Any] = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{file} does not exist; copy or download the model again") from error
    return found


def _refuse_broken_json(file: Path) -> None:
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise DataError(f"{file} is cut off or no JSON ({error}); copy or download it again") from error
    if not isinstance(found, dict):
        raise DataError(f"{file} holds no JSON object; copy or download it again")


@cache
def say_once(line: str) -> None:
    print(line, flush=True)


def quiet_transformers() -> None:
    """Keep bars and warnings of transformers out of job logs."""
    from transformers.utils import logging as of_transformers

    of_transformers.disable_progress_bar()
    of_transformers.set_verbosity_error()
