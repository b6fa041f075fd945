"""AdamW and its learning rate schedules.

The rate is a pure function of the step: resuming needs no scheduler state.
"""

import math
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import nn

from lisan.core.errors import ConfigError
from lisan.model.embeddings.trained_rows import FrozenRows, decay_rows
from lisan.train.options import MomentType, OptimConfig, Schedule


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
    """Return AdamW over the trained weights; matrices decay, vectors (norms, biases) do not.

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
