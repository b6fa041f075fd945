"""AdamW and its schedules.

In: a model and an `OptimConfig`. Out: an optimizer and the learning rate of any step. Always: the rate is a pure
function of the step, so that resuming needs no scheduler state.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.trained_rows import FrozenRows, decay_rows


class Schedule(StrEnum):
    constant = "constant"
    "Warm up, then stay: what ALLaM used for continued pretraining."
    cosine = "cosine"
    wsd = "wsd"
    "Warm up, stay, then fall linearly over the last `decay_ratio` of the steps."


class MomentType(StrEnum):
    """What AdamW keeps its two moments in."""

    fp32 = "fp32"
    int8 = "int8"
    """A byte for each and a scale for every 256 (Dettmers et al. 2022): 2 bytes a weight instead of 8; torchao,
    `pip install -e '.[int8]'`. What is smaller than 4,096 numbers on a worker, or no multiple of 256, stays in fp32. On a GPU the
    first step compiles one kernel for each shape of matrix; there it has not run yet."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimConfig:
    peak_lr: float = 3e-4
    schedule: Schedule = Schedule.cosine
    warmup_steps: int = 20
    final_lr_ratio: float = 0.1
    "Learning rate at the end, as a share of the peak (cosine and wsd)."
    decay_ratio: float = 0.2
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    moments: MomentType = MomentType.fp32
    "How AdamW keeps its state."
    z_loss: float = 0.0
    "Weight of the squared logarithm of the softmax's denominator, against drifting logits; 1e-4 in PaLM. Not for preferences."

    def __post_init__(self) -> None:
        if not self.peak_lr > 0:
            raise ConfigError(f"optim.peak_lr must be > 0, got {self.peak_lr}")
        if self.warmup_steps < 0 or not 0 <= self.final_lr_ratio <= 1 or not 0 < self.decay_ratio <= 1:
            raise ConfigError(
                "optim needs warmup_steps >= 0, final_lr_ratio in 0..1 and decay_ratio in 0..1, got "
                f"{self.warmup_steps}, {self.final_lr_ratio}, {self.decay_ratio}"
            )
        if not self.max_grad_norm > 0:
            raise ConfigError(f"optim.max_grad_norm must be > 0, got {self.max_grad_norm}")
        if not 0 <= self.z_loss < math.inf:
            raise ConfigError(f"optim.z_loss must be >= 0, got {self.z_loss}; 1e-4 is usual, 0 leaves it out")


def learning_rate(step: int, num_steps: int, config: OptimConfig) -> float:
    """Return the rate of step `step` (from 0) of `num_steps`."""
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    if config.schedule is Schedule.constant:
        return config.peak_lr
    last = max(1, num_steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / last)
    if config.schedule is Schedule.cosine:
        share = 0.5 * (1 + math.cos(math.pi * progress))
    else:
        share = min(1.0, (1 - progress) / config.decay_ratio)
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * share)


def make_optimizer(model: nn.Module, config: OptimConfig, frozen: FrozenRows | None = None) -> torch.optim.Optimizer:
    """Return AdamW over what is trained; matrices decay, vectors (norms, biases) do not.

    `frozen` names the matrices of which some rows are trained: only those decay, and the others' gradients are zero.
    """
    frozen = frozen or {}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    whole = [p for p in trained if p not in frozen]
    groups = [
        {"params": [p for p in whole if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in whole if p.ndim < 2], "weight_decay": 0.0},
        {"params": [p for p in trained if p in frozen], "weight_decay": 0.0},
    ]
    optimizer = _make_adamw([group for group in groups if group["params"]], config)
    if frozen and config.weight_decay:
        optimizer.register_step_pre_hook(partial(decay_rows, frozen=frozen, weight_decay=config.weight_decay))
    return optimizer


def _make_adamw(groups: list[dict[str, Any]], config: OptimConfig) -> torch.optim.Optimizer:
    if config.moments is MomentType.int8:
        check_moments(config)
        from torchao.optim import AdamW8bit

        in_bytes: torch.optim.Optimizer = AdamW8bit(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2))
        if groups[0]["params"][0].device.type == "cpu":
            # Compiling took 108 s for the matrices of one layer, and an eager step takes milliseconds.
            in_bytes.step = torch.compiler.set_stance("force_eager")(in_bytes.step)  # type: ignore[method-assign]
        return in_bytes
    return torch.optim.AdamW(groups, lr=config.peak_lr, betas=(config.beta1, config.beta2), fused=True)


def check_moments(config: OptimConfig) -> None:
    """Refuse a state that its library is missing for."""
    if config.moments is MomentType.int8 and find_spec("torchao") is None:
        raise ConfigError(
            "optim.moments=int8 needs torchao, which is not installed: pip install -e '.[int8]', or set it to fp32"
        )


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group the rate of a step; torchao's are tensors, so that a compiled step need not be compiled again."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(lr)
        else:
            group["lr"] = lr
