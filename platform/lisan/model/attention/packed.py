"""Attention over packed rows with one of three kernels: every token attends to its own document up to itself.

Kernels that the machine or the model does not support are refused before the first step.

Shapes: B rows, T tokens.
"""

from functools import cache
from typing import Any

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lisan.core.errors import ConfigError
from lisan.model.attention.by_document import DocumentLayout, attend_side_by_side
from lisan.model.config import Attention

IMPLEMENTATIONS = {
    Attention.sdpa: "lisan_side_by_side",
    Attention.flex: "lisan_flex",
    Attention.flash: "flash_attention_2",
}
"Names in transformers. A name with `sdpa` in it is refused for models with soft caps, which ours supports."


def check_attention(attention: Attention, device: str, dtype: torch.dtype) -> None:
    """Refuse a kernel that this machine cannot train with."""
    from transformers.utils import is_flash_attn_2_available

    if attention is Attention.sdpa:
        return
    if not device.startswith("cuda"):
        raise ConfigError(f"attention={attention} trains on a GPU only, this worker has {device}; take attention=sdpa")
    if attention is Attention.flash and dtype is not torch.bfloat16:
        raise ConfigError(f"attention=flash needs precision=bfloat16, got {dtype}; set it or take attention=flex")
    if attention is Attention.flash and not is_flash_attn_2_available():
        raise ConfigError("attention=flash needs the package flash-attn, which is not installed; take attention=flex")


def use_attention(model: Any, attention: Attention) -> None:
    """Set the attention of a model; ConfigError when the model does not support it."""
    name = type(model).__name__
    able = {Attention.sdpa: model._can_set_attn_implementation(), Attention.flex: model._supports_flex_attn}
    if not able.get(attention, model._supports_flash_attn):
        remedy = "choose another model class" if attention is Attention.sdpa else "take attention=sdpa"
        raise ConfigError(f"attention={attention} is not possible with {name}; {remedy}")
    if getattr(model.config.get_text_config(), "attention_chunk_size", None):
        raise ConfigError(
            f"{name} attends within chunks, which attention={attention} does not support; choose another model"
        )
    dropout = getattr(model.config, "attention_dropout", 0)
    if attention is Attention.flex and dropout:
        raise ConfigError(
            f"attention=flex does not support dropout and {name} has attention_dropout={dropout}; take attention=sdpa"
        )
    _register()
    model.set_attn_implementation(IMPLEMENTATIONS[attention])


def attention_inputs(model: Any, documents: torch.Tensor, layout: DocumentLayout) -> dict[str, Any]:
    """Return the decoder arguments that keep documents [B, T] apart, for the model's attention."""
    implementation = model.config._attn_implementation
    if implementation == IMPLEMENTATIONS[Attention.sdpa]:
        return {"attention_mask": None, "layout": layout}
    if implementation == IMPLEMENTATIONS[Attention.flash]:
        return {"attention_mask": None, **document_lengths(documents)}
    if implementation == IMPLEMENTATIONS[Attention.flex]:
        return {"attention_mask": block_mask(documents)}
    raise ValueError(f"{implementation} does not keep documents apart")


def block_mask(documents: torch.Tensor) -> BlockMask:
    """Return the mask of documents [B, T] in blocks of 128 x 128: full, empty or mixed."""

    def sees(row: torch.Tensor, head: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:  # noqa: ARG001
        return (documents[row, query] == documents[row, key]) & (query >= key)

    num_rows, length = documents.shape
    create = _compiled(create_block_mask) if documents.is_cuda else create_block_mask
    mask: BlockMask = create(sees, num_rows, None, length, length, device=str(documents.device))
    return mask


def document_lengths(documents: torch.Tensor) -> dict[str, Any]:
    """Return the cumulative document lengths of all rows for flash attention's variable-length kernels.

    Document numbers rise from row to row and padding has its own, so that equal neighbours are one document.
    """
    sizes = documents.flatten().unique_consecutive(return_counts=True)[1]
    starts = torch.nn.functional.pad(sizes.cumsum(0), (1, 0)).int()
    longest = int(sizes.max())
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


@cache
def _compiled(function: Any) -> Any:
    return torch.compile(function)


@cache
def _register() -> None:
    """Register our attention functions; transformers' own flex always compiles, which needs a compiler on a CPU."""
    from transformers import AttentionInterface

    AttentionInterface.register(IMPLEMENTATIONS[Attention.sdpa], attend_side_by_side)
    AttentionInterface.register(IMPLEMENTATIONS[Attention.flex], _attend_flex)


def _attend_flex(
    module: Any,  # noqa: ARG001
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: BlockMask,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Implement transformers' attention interface: return [B, T, heads, head size] and no weights."""
    window, length = options.get("sliding_window") or query.shape[2], query.shape[2]
    if window < length or options.get("s_aux") is not None:
        missing = f"windows of {window} tokens in rows of {length}" if window < length else "attention sinks"
        raise ConfigError(f"attention=flex does not support {missing}; take attention=sdpa, or a model without them")
    softcap: float = options.get("softcap") or 0.0

    def cap(score: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return softcap * torch.tanh(score / softcap)

    attend = _compiled(flex_attention) if query.is_cuda else flex_attention
    found = attend(
        query,
        key,
        value,
        score_mod=cap if softcap else None,
        block_mask=attention_mask,
        scale=options.get("scaling"),
        enable_gqa=True,
    )
    return found.transpose(1, 2).contiguous(), None
