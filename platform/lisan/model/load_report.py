"""Refuses weights that do not fit their model: missing, unexpected or of another shape.

Transformers would initialise such weights at random and only warn.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from lisan.core.errors import DataError
from lisan.model.model_files import CONFIG

WRAPPERS = {
    "_orig_mod.": "torch.compile; save its _orig_mod instead",
    "module.": "DistributedDataParallel; save its module instead",
    "_fsdp_wrapped_module.": "FSDP; save its full state dict instead",
    "base_model.model.": "PEFT; save what its merge_and_unload() returns instead",
}
"Prefix that a wrapper adds to every name: the wrapper and the remedy."
HARMLESS = re.compile(r"(\.(inv_freq|cos_cached|sin_cached)|(attn|attention)\.(masked_)?bias|(^|\.)position_ids)$")
"Buffers that older versions of transformers stored and newer ones compute."


def refuse_incomplete(kind: Any, config: Any, shapes: Mapping[str, tuple[int, ...]], name_or_path: str) -> None:
    """Refuse files whose tensors are not the weights of a model class, complete and of its shapes; reads no weight.

    Transformers compares them, because it knows the names of fused and renamed weights.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    model, report = kind.from_pretrained(
        None,
        config=config,
        state_dict=state,
        device_map="meta",
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    refuse_report(report, list(model.state_dict()), kind.__name__, name_or_path)


def refuse_report(report: Mapping[str, Iterable[Any]], order: list[str], kind: str, name_or_path: str) -> None:
    """Raise DataError for the missing, unexpected and misshapen weights in transformers' report of a load."""
    unexpected = sorted(name for name in report["unexpected_keys"] if not HARMLESS.search(name))
    for prefix, wrapper in WRAPPERS.items():
        if any(name.startswith(prefix) for name in unexpected):
            raise DataError(f"{name_or_path} names its weights {prefix}*: they were saved from inside {wrapper}")
    if shapes := sorted(report["mismatched_keys"]):
        name, found, wanted = shapes[0]
        raise DataError(
            f"{name_or_path} holds {name} {list(found)} and {kind} of its {CONFIG} has {list(wanted)}{_more(shapes)}; one of "
            "the two is "
            "of another model: copy both again"
        )
    missing = set(report["missing_keys"])
    if missing:
        first = next((name for name in order if name in missing), min(missing))
        remedy = "correct tie_word_embeddings if its embeddings are one matrix, or " if "lm_head" in first else ""
        raise DataError(
            f"{name_or_path} lacks {first}, which {kind} of its {CONFIG} needs{_more(missing)}; {remedy}copy or save the model "
            "again"
        )
    if unexpected:
        raise DataError(
            f"{name_or_path} holds {unexpected[0]}, for which {kind} of its {CONFIG} has no place{_more(unexpected)}; correct "
            f"{CONFIG} "
            "(num_hidden_layers, architectures), or save the model again without it"
        )


def _more(names: Any) -> str:
    return f" ({len(names)} weights in all)" if len(names) > 1 else ""
