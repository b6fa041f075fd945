"""Attention document by document: those of like length lie side by side in one tensor, and no mask is needed.

Takes queries, keys and values of packed rows, and a `DocumentLayout` of the lengths of their documents. Documents are padded at
their end only, which causal attention never sees, so the output of a document depends on its own tokens alone. Work and memory
grow with the squares of the documents, not with the square of the row.

Shapes: B rows, T tokens, H heads, S head size, P places, L length of a bucket.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from lisan.core.errors import ConfigError

SHORT = 64
"""Tokens up to which a CPU multiplies the scores of a document out: torch's kernel needs as long for the backward pass of
16 tokens as for that of 128, three to fifteen times what the multiplications take."""
PADDING = 16
"Tokens of a row behind its last document are computed as documents of so many: nobody looks at what comes out."


@dataclass(frozen=True)
class DocumentLayout:
    """How `sdpa` lays the documents of a batch side by side.

    Buckets hold documents of like length, filled up at their ends with tokens that causal attention never sees.
    Worked example: a row of 5 tokens, documents of 2 and 3, one bucket of L = 5: tokens [0, 1, 1, 1, 1, 2, 3, 4, 4, 4], places
    [0, 1, 5, 6, 7].
    """

    tokens: torch.Tensor
    "[P]; the token, of all B x T, that every place of the buckets takes"
    places: torch.Tensor
    "[B x T]; the place of every token"
    shapes: tuple[tuple[int, int], ...]
    "Documents and length of every bucket; their products add up to P."

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "DocumentLayout":
        tokens, places = (tensor.to(device, non_blocking=non_blocking) for tensor in (self.tokens, self.places))
        return DocumentLayout(tokens, places, self.shapes)


def lay_side_by_side(doc_lens: Sequence[Sequence[int]], length: int) -> DocumentLayout:
    """Put the documents of rows of `length` tokens into buckets; what is left of a row behind them is padding."""
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
    places = np.empty(len(doc_lens) * length, np.int64)
    # A document's last token fills its bucket up: its own place is the first that takes it.
    places[taken[::-1]] = np.arange(len(taken))[::-1]
    return DocumentLayout(torch.from_numpy(taken), torch.from_numpy(places), tuple(shapes))


def _round_up(size: int, longest: int) -> int:
    """Return the length of a document's bucket: four lengths an octave, so that a quarter is padding at most."""
    grain = max(PADDING, 1 << max(0, size.bit_length() - 3))
    return min(longest, -(-size // grain) * grain)


class _Spread(torch.autograd.Function):
    """x[tokens]: the backward pass gathers too, where that of an index adds up one by one."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layout: DocumentLayout) -> torch.Tensor:
        ctx.places = layout.places
        return x[layout.tokens]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        # What fills a bucket up is seen by nothing that is looked at: its gradient is 0, and only real places count.
        return grads[0][ctx.places], None


class _Collect(torch.autograd.Function):
    """y[places]: every place is taken once, or not at all where it fills a bucket up."""

    @staticmethod
    def forward(ctx: Any, y: torch.Tensor, layout: DocumentLayout) -> torch.Tensor:
        ctx.places, ctx.num_places = layout.places, len(y)
        return y[layout.places]

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        spread = grads[0].new_zeros(ctx.num_places, *grads[0].shape[1:])
        spread[ctx.places] = grads[0]
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
    """Answer as an attention function of transformers does: from [B, H, T, S] to [B, T, H, S], and no weights.

    Raises ConfigError for a model that hides the layout from its attention, or wants of it what this one does not know.
    """
    unknown = {
        "documents": layout is None,
        "masks of the model's own": attention_mask is not None,
        "attention sinks": options.get("s_aux") is not None,
    }
    if layout is None or any(unknown.values()):
        what = next(word for word, is_wanted in unknown.items() if is_wanted)
        raise ConfigError(f"attention=sdpa knows no {what} in {type(module).__name__}; choose another model class")
    rows, _, length, _ = query.shape
    spread = [_Spread.apply(x.transpose(1, 2).flatten(0, 1), layout) for x in (query, key, value)]
    sizes = [count * bucket for count, bucket in layout.shapes]
    found = []
    for (count, bucket), *parts in zip(layout.shapes, *(x.split(sizes) for x in spread), strict=True):
        answer = _attend_bucket([part.view(count, bucket, *part.shape[1:]).transpose(1, 2) for part in parts], options)
        found.append(answer.transpose(1, 2).flatten(0, 1))
    collected: torch.Tensor = _Collect.apply(torch.cat(found), layout)
    return collected.view(rows, length, *collected.shape[1:]), None


def _attend_bucket(parts: Sequence[torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    """Attend causally within documents of one length: query, key and value [documents, H, L, S]."""
    query, key, value = parts
    length = query.shape[2]
    window = options.get("sliding_window") or length
    softcap, dropout = options.get("softcap"), options.get("dropout", 0.0)
    if softcap or (length <= SHORT and not query.is_cuda and not dropout):
        sees = _sees(length, window, query.device)
        return _multiply_out(query, key, value, sees, options.get("scaling"), softcap)
    narrow = window < length
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_sees(length, window, query.device) if narrow else None,
        dropout_p=dropout,
        is_causal=not narrow,
        scale=options.get("scaling"),
        enable_gqa=key.shape[1] != query.shape[1],
    )


def _sees(length: int, window: int, device: torch.device) -> torch.Tensor:
    """Return [L, L], true where a query may look at a key: not later, and no more than `window` - 1 back."""
    back = torch.arange(length, device=device)[:, None] - torch.arange(length, device=device)
    return (back >= 0) & (back < window)


def _multiply_out(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    sees: torch.Tensor,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:
    """Attend with whole scores in fp32."""
    groups = query.shape[1] // key.shape[1]
    keys, values = (x.float().repeat_interleave(groups, 1) if groups > 1 else x.float() for x in (key, value))
    scores = (query.float() * (scaling or query.shape[-1] ** -0.5)) @ keys.transpose(2, 3)
    if softcap:
        scores = softcap * torch.tanh(scores / softcap)
    return (scores.masked_fill(~sees, -torch.inf).softmax(-1) @ values).to(query.dtype)
