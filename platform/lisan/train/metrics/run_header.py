"""Facts of a run before its first step, for its page: model, tokens, batch, workers.

All are plain values of one line of JSON. The digest of the config is the fingerprint of the artifact's manifest.
"""

from dataclasses import dataclass
from typing import Any

from lisan.cluster.worker import Worker
from lisan.core.artifact import Kind, Ref
from lisan.core.identity import fingerprint
from lisan.core.versions import code_commit
from lisan.data.mix import plan_shares
from lisan.data.row_order import RowOrder
from lisan.model.adapters.nf4 import Nf4Linear
from lisan.model.score import Scorer
from lisan.train.metrics.mfu import Mfu
from lisan.train.metrics.progress_line import format_count


@dataclass(frozen=True)
class HeaderFacts:
    """The run, as far as it is known before it begins."""

    num_steps: int
    order: RowOrder
    mfu: Mfu | None


def describe_run(config: Any, scorer: Scorer, worker: Worker, plan: HeaderFacts) -> dict[str, Any]:
    """Return the header: numbers that the page computes with, and facts that it shows."""
    return {
        "title": str(Ref(Kind.model, config.name, config.version)),
        "num_steps": plan.num_steps,
        "planned": plan_shares(plan.order.num_rows, config.mix, plan.num_steps),
        "languages": dict(plan.order.languages),
        "facts": _list_facts(config, scorer, worker, plan),
    }


def count_weights(scorer: Scorer) -> tuple[int, int]:
    """Return how many weights a model has and how many of them are trained; those in 4 bits are buffers and count too."""
    packed = (module for module in scorer.modules() if isinstance(module, Nf4Linear))
    in_4_bits = sum(layer.in_features * layer.out_features for layer in packed)
    weights = list(scorer.parameters())
    num_trained = sum(weight.numel() for weight in weights if weight.requires_grad)
    return in_4_bits + sum(weight.numel() for weight in weights), num_trained


def _list_facts(config: Any, scorer: Scorer, worker: Worker, plan: HeaderFacts) -> dict[str, str]:
    num_weights, num_trained = count_weights(scorer)
    together = worker.tensor_parallel_size
    said = f", {together} of them to a block" if together > 1 else ""
    loop, length = config.loop, plan.order.context_length
    return {
        "starts from": config.model.path or "random weights",
        "tokenizer": config.model.tokenizer or "its own",
        "tokens": config.tokens,
        "weights": f"{format_count(num_weights)}, {format_count(num_trained)} trained ({config.tuning.method})",
        "step": f"{loop.step_rows} rows of {length:,} = {loop.step_rows * length:,} tokens with padding",
        "learning rate": f"{config.optim.peak_lr:g} at its peak, {config.optim.schedule}",
        "workers": f"{worker.world_size} on {worker.device.split(':')[0]}{said}, {worker.precision}",
        **({"MFU of": plan.mfu.said(worker.world_size).removeprefix("MFU of ")} if plan.mfu else {}),
        "config": fingerprint(config)[:12],
        "commit": code_commit(),
    }
