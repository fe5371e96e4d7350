"""Token states of an encoder to one vector a text."""

from typing import Literal

import torch
from torch import Tensor


def pool(states: Tensor, mask: Tensor, *, pooling: Literal["mean", "cls", "last"]) -> Tensor:
    """Bring token states to one vector a text.

    Args:
        states: ``(B, T, D)``.
        mask: ``(B, T)``, 1 for tokens and 0 for padding, on either side; at least one token a text.
        pooling: ``mean`` of the tokens, the first token (``cls``), or the ``last`` one.

    Returns:
        ``(B, D)`` float32.

    Example:
        >>> states, mask = torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[1, 1, 0]])
        >>> [pool(states, mask, pooling=how).tolist() for how in ("mean", "cls", "last")]
        [[[2.0]], [[1.0]], [[3.0]]]
    """
    if pooling == "mean":
        weights = mask.unsqueeze(-1).float()
        return (states.float() * weights).sum(1) / weights.sum(1)  # bf16 loses digits where many are added
    places = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    first = pooling == "cls"
    outside = places.masked_fill(mask == 0, mask.shape[1] if first else -1)
    chosen = outside.amin(1) if first else outside.amax(1)
    return states[torch.arange(len(states), device=states.device), chosen].float()
