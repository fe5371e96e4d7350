"""The rotation trick: another way for the gradient to pass the quantization."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

TINY = 1e-6
"""A vector shorter than this has no direction to turn."""


def rotated(z: Tensor, target: Tensor) -> Tensor:
    """Turn and stretch vectors onto their targets, by a transform that counts as constant.

    The value is the target's. The gradient goes back through the transform ``|q|/|z| R`` alone, so that it keeps its
    angle to the vector, where straight-through would carry it over as it is (Fifty et al. 2024, eq. 4, in the form
    without a matrix: R = I - 2 m m' + 2 q z' with q, z of length 1 and m half-way between them). Where the vector or
    its target has no direction, the gradient passes straight through.

    Args:
        z: ``(B, d)`` vectors.
        target: ``(B, d)`` vectors that they are taken for.

    Returns:
        ``(B, d)``, equal to ``target``.
    """
    with torch.no_grad():
        lengths, target_lengths = z.norm(dim=-1, keepdim=True), target.norm(dim=-1, keepdim=True)
        from_unit, to_unit = normalize(z, dim=-1), normalize(target, dim=-1)
        middle = normalize(from_unit + to_unit, dim=-1)
        has_direction = (lengths > TINY) & (target_lengths > TINY)
        stretch = target_lengths / lengths.clamp(min=TINY)
    mirrored = z - 2 * (z * middle).sum(-1, keepdim=True) * middle
    turned = mirrored + 2 * (z * from_unit).sum(-1, keepdim=True) * to_unit
    passed = torch.where(has_direction, stretch * turned, z)
    return passed + (target - passed).detach()
