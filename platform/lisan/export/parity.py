"""Compares an exported model with its original on fixed probes: KL divergence and agreement of next tokens.

The probes are the same, in the same order, for every format and version, so that figures are comparable.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lisan.records.records import Turn
from lisan.tokenizer.chat.chat_template import encode_prompt

PROBES = (
    "العربية لغة سامية يتحدث بها أكثر من أربعمائة مليون نسمة، وهي لغة القرآن الكريم.",
    "ما هي عاصمة المغرب؟ عاصمة المغرب هي الرباط، وتقع على ساحل المحيط الأطلسي.",
    "شنو هي العاصمة ديال المغرب؟ كنظن بلي هي الرباط، ماشي الدار البيضاء.",
    "ذَهَبَ الوَلَدُ إلى المَدْرَسَةِ في ١٢ مارس ٢٠٢٤.",
    "The capital of Morocco is Rabat, which lies on the Atlantic coast.",
    "In 2024, 37 people said: \"It's not what we'd expected!\"",
    "def mean(values): return sum(values) / len(values)",
)
"Standard Arabic, Darija, diacritics and Arabic digits, English, code."


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Figures of a comparison, as in the manifest."""

    mean_kl: float
    "KL(original || exported) of the next token, mean over the probes' tokens, in nats."
    max_difference: float
    "Largest difference of two logits."
    agreement_ratio: float
    "Share of tokens after which both models rank the same token first."
    num_tokens: int


def probe_rows(tokenizer: Any, max_tokens: int) -> list[list[int]]:
    """Return the ids of the probes as plain text and, with a chat template, as user messages."""
    rows: list[list[int]] = [tokenizer.encode(text) for text in PROBES]
    if tokenizer.chat_template is not None:
        rows += [encode_prompt(tokenizer, (Turn("user", text),)) for text in PROBES]
    return [row[:max_tokens] for row in rows]


@torch.no_grad()
def compute_logits(model: Any, rows: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """Return fp32 logits [tokens, vocabulary] for each row."""
    return [model(torch.tensor([list(row)]), use_cache=False).logits[0].float() for row in rows]


def compare_logits(original: Sequence[torch.Tensor], exported: Sequence[torch.Tensor]) -> Parity:
    first, second = torch.cat(list(original)), torch.cat(list(exported))
    logps, others = first.log_softmax(-1), second.log_softmax(-1)
    kl = (logps.exp() * (logps - others)).sum(-1)
    return Parity(
        mean_kl=float(kl.mean().clamp(min=0)),  # not max(), which would turn NaN into a value that passes
        max_difference=float((first - second).abs().max()),
        agreement_ratio=float((first.argmax(-1) == second.argmax(-1)).float().mean()),
        num_tokens=len(first),
    )
