"""The optimizer that tuning and alignment share: AdamW, a warm-up, a cosine to the minimum rate."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from leadre.training.config import check_rates


def adamw(
    parameters: Iterable[nn.Parameter],
    *,
    num_steps: int,
    learning_rate: float,
    min_learning_rate: float,
    warmup_share: float,
    weight_decay: float,
) -> OptimizerLRSchedulerConfig:
    """AdamW over the trainable parameters, its learning rate set anew at every step by `rate` (LEADRE 5.1.3).

    Raises:
        ValueError: If the minimum rate is above the rate that falls to it.
    """
    check_rates(learning_rate, min_learning_rate)
    optimizer = torch.optim.AdamW(decay_groups(parameters, weight_decay), lr=learning_rate)
    factor = partial(rate, num_steps=num_steps, warmup_share=warmup_share, floor=min_learning_rate / learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def decay_groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: matrices with weight decay, vectors (norms, biases) without. Our choice."""
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim < 2], "weight_decay": 0.0},
    ]


def rate(step: int, *, num_steps: int, warmup_share: float, floor: float) -> float:
    """The learning rate at a step as a share of the highest.

    It rises in equal parts to 1 at the last warm-up step, then falls along a cosine to ``floor`` at the last step.

    Example:
        >>> [round(rate(t, num_steps=6, warmup_share=1 / 3, floor=0.1), 3) for t in range(6)]
        [0.5, 1.0, 0.868, 0.55, 0.232, 0.1]
    """
    warmup = round(warmup_share * num_steps)
    if step < warmup:
        return (step + 1) / warmup
    start = max(warmup - 1, 0)
    done = min((step - start) / max(num_steps - 1 - start, 1), 1.0)
    return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2
