"""Scores packed rows: the log-probability of every labelled token.

Documents of one row do not see each other, positions restart with each document, and log-probabilities are natural
logarithms, 0 where no token is labelled.

Shapes: B rows, T tokens, N labelled tokens, D hidden, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule

from lisan.core.errors import ConfigError
from lisan.model.attention.by_document import DocumentLayout, lay_side_by_side
from lisan.model.attention.packed import attention_inputs, use_attention
from lisan.model.attention.rope import use_rope_by_document
from lisan.model.config import Attention
from lisan.model.linear_logps import linear_logps


@dataclass(frozen=True)
class Batch:
    """Packed rows as tensors."""

    input_ids: torch.Tensor
    "[B, T]"
    labels: torch.Tensor
    "[B, T]; negative for tokens without a label"
    documents: torch.Tensor
    "[B, T]; number of the document in the batch; the padding of a row has its own number"
    positions: torch.Tensor
    "[B, T]; position in the document"
    doc_numbers: torch.Tensor
    "[documents]; numbers of the documents without padding, row by row"
    layout: DocumentLayout
    "Buckets of documents for attention."

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


def collate(input_ids: Any, labels: Any, doc_lens: Sequence[Sequence[int]]) -> Batch:
    """Make a batch from arrays [B, T] and the lengths of the documents of each row.

    Worked example: T = 5, doc_lens = [[2, 2]] gives documents [[0, 0, 1, 1, 2]] and positions [[0, 1, 0, 1, 0]].
    """
    num_rows, length = input_ids.shape
    documents = np.empty((num_rows, length), np.int64)
    positions = np.empty((num_rows, length), np.int64)
    doc_numbers: list[int] = []
    number = 0
    for row, lens in enumerate(doc_lens):
        sizes = [*lens, length - sum(lens)]
        documents[row] = np.repeat(np.arange(number, number + len(sizes)), sizes)
        positions[row] = np.concatenate([np.arange(size) for size in sizes])
        doc_numbers += range(number, number + len(lens))
        number += len(sizes)
    return Batch(
        input_ids=torch.from_numpy(input_ids.astype(np.int64)),
        labels=torch.from_numpy(labels.astype(np.int64)),
        documents=torch.from_numpy(documents),
        positions=torch.from_numpy(positions),
        doc_numbers=torch.tensor(doc_numbers),
        layout=lay_side_by_side(doc_lens, length),
    )


class Scorer(nn.Module):
    """A causal LM whose forward pass returns log-probabilities; the unit that is sharded, trained and evaluated."""

    def __init__(self, model: Any, attention: Attention = Attention.sdpa, exact_logits: bool = False) -> None:
        """Wrap a model; `exact_logits` computes the output product in fp32 for weights of any dtype.

        In bf16 a logit of 20 is rounded to a multiple of 0.125, so that different answers tie. Training does not need it: the
        rounding averages out over many tokens.

        ConfigError when the model does not support this attention or positions by document.
        """
        super().__init__()
        use_attention(model, attention)
        use_rope_by_document(model)
        self.model = model
        self.exact_logits = exact_logits
        self._scale, self._softcap = read_head(model)

    def forward(self, batch: Batch, with_log_z: bool = False) -> torch.Tensor:
        """Return logps_BT: the log-probability of each labelled token given those before it in its document.

        With `with_log_z` return [2, B, T]: also log Z, the logarithm of the sum that the softmax divides by.
        """
        hidden_BTD = self.model.get_decoder()(
            input_ids=batch.input_ids,
            position_ids=batch.positions,
            use_cache=False,
            **attention_inputs(self.model, batch.documents, batch.layout),
        ).last_hidden_state
        is_scored = batch.labels[:, 1:] >= 0
        targets_N = batch.labels[:, 1:][is_scored]
        weight_VD = self.model.get_output_embeddings().weight
        hidden_ND = hidden_BTD[:, :-1][is_scored]
        if self.exact_logits:
            hidden_ND = hidden_ND.float()
        if self._scale != 1:
            hidden_ND = hidden_ND * self._scale
        logps_N, log_z_N = linear_logps(hidden_ND, weight_VD, targets_N, self._softcap)
        if with_log_z:
            return torch.stack([_spread(logps_N, is_scored), _spread(log_z_N, is_scored)])
        return _spread(logps_N, is_scored)


def read_head(model: Any) -> tuple[float, float]:
    """Return the scale and the soft cap (0 for none) of the logits; ConfigError for an output layer with a bias."""
    if getattr(model.get_output_embeddings(), "bias", None) is not None:
        raise ConfigError(f"the output layer of {type(model).__name__} has a bias; choose a model without one")
    config = model.config.get_text_config()
    # Cohere's models multiply, Granite's divide.
    scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
    return scale, getattr(config, "final_logit_softcapping", None) or 0.0


def _spread(values_N: torch.Tensor, is_scored: torch.Tensor) -> torch.Tensor:
    """Scatter the values of labelled tokens to [B, T]; the first token of a row is never scored."""
    values_BT = values_N.new_zeros(len(is_scored), is_scored.shape[1] + 1)
    values_BT[:, 1:] = values_BT[:, 1:].masked_scatter(is_scored, values_N)
    return values_BT


def sum_by_document(logps_BT: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Return the summed log-probability of each document of the batch, in order."""
    sums = logps_BT.new_zeros(int(batch.documents.max()) + 1)
    return sums.index_add(0, batch.documents.flatten(), logps_BT.flatten())[batch.doc_numbers]


def reshard(scorer: nn.Module) -> None:
    """Free the whole weights that FSDP keeps after a forward pass without a backward pass; does nothing without FSDP."""
    for module in scorer.modules():
        if isinstance(module, FSDPModule):
            module.reshard()
