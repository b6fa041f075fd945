"""Counts the model FLOPs of a causal LM from the shapes of its layers; a multiplication and an addition count as two.

These are model FLOPs, not hardware FLOPs: recomputed logits or activations count once, padding does not count, so that
recomputation raises no MFU.

Per token a matrix of n weights costs 2n forward, 2n for the gradient of its input and 2n for its own: 6n when it is
trained, 4n when it is frozen below trained weights (LoRA). The input embedding is a lookup and costs nothing; the output
matrix is applied to labelled tokens only. Attention costs 4 x heads x head size for every pair of a query and a key of
the same document, twice that again backward; as in PaLM (Chowdhery et al. 2022, appendix B) the half of the pairs that a
causal mask hides is counted, so the pairs of a document are the square of its length, not of the row's.

Worked example, Llama 3.1 8B, a row of 4,096 tokens in one document, all labelled: 6,979,321,856 weights in the blocks and
525,336,576 in the output matrix, 6 x 7,504,658,432 = 45.0 GFLOPs a token; attention 12 x 32 layers x 4,096 x 4,096 =
6.4 GFLOPs a token; together 51.5. Cut into four documents the row's attention costs a quarter.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Work:
    """Counts of tokens, attention pairs and labels in some rows."""

    num_tokens: int
    "Without padding."
    num_pairs: int
    "Of a query and a key: the sum of the squares of the documents' lengths."
    num_labels: int


@dataclass(frozen=True)
class ModelFlops:
    """FLOPs of a forward and a backward pass, per token, per pair and per label."""

    forward_per_token: int
    forward_per_pair: int
    forward_per_label: int
    backward_per_token: int
    backward_per_pair: int
    backward_per_label: int

    def forward(self, work: Work) -> int:
        """Return the FLOPs of scoring alone."""
        return (
            self.forward_per_token * work.num_tokens
            + self.forward_per_pair * work.num_pairs
            + self.forward_per_label * work.num_labels
        )

    def training(self, work: Work) -> int:
        """Return the FLOPs of a forward and a backward pass."""
        return (
            self.forward(work)
            + self.backward_per_token * work.num_tokens
            + self.backward_per_pair * work.num_pairs
            + self.backward_per_label * work.num_labels
        )


def count_flops(model: Any) -> ModelFlops | None:
    """Count the FLOPs of a causal LM; None for weights outside linear layers (experts, convolutions).

    Two simplifications: the input gradient of frozen projections right above a frozen embedding is counted though it is not
    computed (0.1 % of an 8B model under LoRA), and sliding windows of attention are ignored.
    """
    decoder, output = model.get_decoder(), model.get_output_embeddings()
    linears = [module for module in decoder.modules() if isinstance(module, nn.Linear)]
    known = {id(weight) for module in (*linears, output, *_embeddings(decoder)) for weight in module.parameters()}
    if any(weight.dim() > 1 and id(weight) not in known for weight in decoder.parameters()):
        return None
    config = model.config
    num_heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    per_pair = 4 * num_heads * head_size * config.num_hidden_layers
    # Layer sizes instead of weight shapes: 4-bit weights are packed, sharded ones are partial.
    sizes = [(2 * linear.in_features * linear.out_features, _is_trained(linear)) for linear in linears]
    below = any(weight.requires_grad for weight in decoder.parameters())
    rows, width = output.out_features, output.in_features
    return ModelFlops(
        forward_per_token=sum(size for size, _ in sizes),
        forward_per_pair=per_pair,
        forward_per_label=2 * rows * width,
        backward_per_token=sum(size * (below + trained) for size, trained in sizes),
        backward_per_pair=2 * per_pair * below,
        backward_per_label=2 * rows * width * (below + _is_trained(output)),
    )


def _is_trained(module: nn.Module) -> bool:
    weight: Any = module.weight
    return bool(weight.requires_grad)


def _embeddings(decoder: nn.Module) -> list[nn.Module]:
    return [module for module in decoder.modules() if isinstance(module, nn.Embedding)]
