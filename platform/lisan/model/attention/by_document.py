"""Attention document by document: documents of similar length are batched in one tensor, without a mask.

Documents are padded at their ends only, which causal attention never sees, so that a document's output depends on its own tokens
alone. Work and memory grow with the squares of the document lengths, not with the square of the row.

Shapes: B rows, T tokens, H heads, S head size, P bucket slots, L length of a bucket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lisan.core.errors import ConfigError

SHORT = 64
"""Up to this many tokens a CPU computes the whole score matrix: the backward pass of torch's kernel takes as long for 16
tokens as for 128, three to fifteen times as long as the plain products."""
PADDING = 16
"Padding tokens of a row are computed as documents of this many tokens; their output is not used."


@dataclass(frozen=True)
class DocumentLayout:
    """Buckets of a batch's documents for `sdpa`.

    A bucket has documents of similar length, padded at their ends with tokens that causal attention never sees.
    Worked example: a row of 5 tokens, documents of 2 and 3, one bucket of L = 5: tokens [0, 1, 1, 1, 1, 2, 3, 4, 4, 4], slots
    [0, 1, 5, 6, 7].
    """

    tokens: torch.Tensor
    "[P]; index of the token, of all B x T, in every slot of the buckets"
    slots: torch.Tensor
    "[B x T]; slot of every token"
    shapes: tuple[tuple[int, int], ...]
    "Documents and length of every bucket; their products sum to P."

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DocumentLayout":
        tokens, slots = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.tokens, self.slots))
        return DocumentLayout(tokens, slots, self.shapes)


def lay_side_by_side(doc_lens: Sequence[Sequence[int]], length: int) -> DocumentLayout:
    """Put the documents of rows of `length` tokens into buckets; the rest of a row is padding."""
    starts, lens = [], []
    for row, sizes in enumerate(doc_lens):
        end = sum(sizes)
        padding = [min(PADDING, length - start) for start in range(end, length, PADDING)]
        starts += [row * length + start for start in np.cumsum([0, *sizes, *padding])[:-1]]
        lens += [*sizes, *padding]
    start_of, len_of = np.array(starts, np.int64), np.array(lens, np.int64)
    bucket_of = np.array([_round_up(size, length) for size in lens], np.int64)
    tokens, shapes = [], []
    for size in np.unique(bucket_of):
        own = bucket_of == size
        tokens.append(start_of[own, None] + np.minimum(np.arange(size), len_of[own, None] - 1))
        shapes.append((int(own.sum()), int(size)))
    taken = np.concatenate([part.ravel() for part in tokens])
    slots = np.empty(len(doc_lens) * length, np.int64)
    # A document's last token also pads its bucket: its own slot is the first one.
    slots[taken[::-1]] = np.arange(len(taken))[::-1]
    return DocumentLayout(torch.from_numpy(taken), torch.from_numpy(slots), tuple(shapes))


def _round_up(size: int, longest: int) -> int:
    """Return the length of a document's bucket: four lengths an octave, so that a quarter is padding at most."""
    grain = max(PADDING, 1 << max(0, size.bit_length() - 3))
    return min(longest, -(-size // grain) * grain)


class _ToBuckets(torch.autograd.Function):
    """x[tokens], with a gather as backward pass: that of plain indexing adds element by element."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: DocumentLayout) -> torch.Tensor:
        ctx.slots = layout.slots
        return x[layout.tokens]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        # Padding slots have gradient 0, so that only the slots of real tokens count.
        return grads[0][ctx.slots], None


class _FromBuckets(torch.autograd.Function):
    """y[slots]: reads every slot once, padding slots never."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, layout: DocumentLayout) -> torch.Tensor:
        ctx.slots, ctx.num_slots = layout.slots, len(y)
        return y[layout.slots]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        spread = grads[0].new_zeros(ctx.num_slots, *grads[0].shape[1:])
        spread[ctx.slots] = grads[0]
        return spread, None


@torch.compiler.disable  # its shapes differ from batch to batch
def attend_side_by_side(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    layout: DocumentLayout | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Implement transformers' attention interface: [B, H, T, S] to [B, T, H, S], and no weights.

    ConfigError for a model that does not pass the layout on, or needs an option that is not supported.
    """
    unknown = {
        "documents": layout is None,
        "masks of the model's own": attention_mask is not None,
        "attention sinks": options.get("s_aux") is not None,
    }
    if layout is None or any(unknown.values()):
        missing = next(word for word, is_wanted in unknown.items() if is_wanted)
        raise ConfigError(
            f"attention=sdpa does not support {missing} in {type(module).__name__}; choose another model class"
        )
    rows, _, length, _ = query.shape
    spread = [_ToBuckets.apply(x.transpose(1, 2).flatten(0, 1), layout) for x in (query, key, value)]
    sizes = [count * bucket for count, bucket in layout.shapes]
    found = []
    for (count, bucket), *parts in zip(layout.shapes, *(x.split(sizes) for x in spread), strict=True):
        answer = _attend_bucket([part.view(count, bucket, *part.shape[1:]).transpose(1, 2) for part in parts], options)
        found.append(answer.transpose(1, 2).flatten(0, 1))
    collected: torch.Tensor = _FromBuckets.apply(torch.cat(found), layout)
    return collected.view(rows, length, *collected.shape[1:]), None


def _attend_bucket(parts: Sequence[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """Attend causally within documents of one length: query, key and value [documents, H, L, S]."""
    query, key, value = parts
    length = query.shape[2]
    window = options.get("sliding_window") or length
    softcap, dropout = options.get("softcap"), options.get("dropout", 0.0)
    if softcap or (length <= SHORT and not query.is_cuda and not dropout):
        mask = _causal_mask(length, window, query.device)
        return _attend_with_scores(query, key, value, mask, options.get("scaling"), softcap)
    narrow = window < length
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_causal_mask(length, window, query.device) if narrow else None,
        dropout_p=dropout,
        is_causal=not narrow,
        scale=options.get("scaling"),
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _causal_mask(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return the causal mask [L, L]: true for keys that are not later and at most `window` - 1 back."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < window)


def _attend_with_scores(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with the whole score matrix in fp32."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.float().repeat_interleave(groups, 1) if groups > 1 else x.float() for x in (key, value))
    scores = (query.float() * (scaling or query.shape[-1] ** -0.5)) @ keys.transpose(2, 3)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ values).to(query.dtype)
