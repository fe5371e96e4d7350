"""What is told of a training step, and the running means that a guard can trust."""

from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor

from leadre.alignment.rows import Batch

MEANS = ("loss", "chosen_logp", "rejected_logp", "reward_margin", "reward_accuracy")


class Observed(NamedTuple):
    """What one rank saw of a step; the sum over ranks and micro-batches is what the step has seen.

    Attributes:
        means: ``(5,)`` this part's share of the means over rows that `MEANS` names.
        sums: ``(2 + L,)`` over the rows or pairs that each is of: how far the chosen ads' log-probability lies below
            the reference's; the probability of the codes that chosen and rejected ad share, of pairs that share any;
            the reward margin of the pairs that part after 0, 1, ..., L - 1 codes.
        counts: ``(2 + L,)`` of how many.
    """

    means: Tensor
    sums: Tensor
    counts: Tensor


def observe(losses: Tensor, logprobs: Tensor, batch: Batch, *, reward_scale: float) -> Observed:
    """Look at a batch.

    The reward of an answer is ``reward_scale (log p - log p_ref)``, as in DPO, whatever the method: so the curves of
    methods can be laid over one another. Of several rejected answers a row's mean is taken.

    Args:
        losses: ``(B,)``.
        logprobs: ``(B, R, L)`` token log-probabilities under the policy.
        batch: Has the reference and the weights.
        reward_scale: DPO's beta.
    """
    totals = logprobs.sum(-1)
    gains = totals - batch.reference  # (B, R)
    margins = reward_scale * (gains[:, :1] - gains[:, 1:])  # (B, R - 1)
    share = batch.weights[:, None] * batch.rejected / batch.rejected.sum(1, keepdim=True)
    means = torch.stack(
        [
            (batch.weights * losses).sum(),  # autocast would round a matrix product to bfloat16
            (batch.weights * totals[:, 0]).sum(),
            (share * totals[:, 1:]).sum(),
            (share * margins).sum(),
            (share * (margins > 0)).sum(),
        ]
    )
    rows = batch.real.to(torch.float32)
    pairs = rows[:, None] * batch.rejected
    level = shared_codes(batch.answers)
    at_level = F.one_hot(level, batch.answers.shape[2]) * pairs[..., None]  # (B, R - 1, L)
    sharing = pairs * (level > 0)
    masses = prefix_masses(logprobs, level)
    of_all = torch.stack([-(rows * gains[:, 0]).sum(), (sharing * masses).sum()])
    sums = torch.cat([of_all, (at_level * margins[..., None]).sum((0, 1))])
    counts = torch.cat([torch.stack([rows.sum(), sharing.sum()]), at_level.sum((0, 1))])
    return Observed(means, sums, counts)


def shared_codes(answers: Tensor) -> Tensor:
    """The number of leading codes that each rejected answer shares with the chosen one.

    Args:
        answers: ``(B, R, L)``.

    Returns:
        ``(B, R - 1)`` int64, below L: two ads differ somewhere.

    Example:
        >>> shared_codes(torch.tensor([[[5, 7, 9], [5, 7, 8], [4, 7, 9]]])).tolist()
        [[2, 0]]
    """
    return (answers[:, :1] == answers[:, 1:]).cumprod(dim=-1).sum(dim=-1)


def prefix_masses(logprobs: Tensor, shared: Tensor) -> Tensor:
    """The policy's probability of the codes that a rejected answer shares with the chosen one.

    DPO says nothing of them, and moves them all the same: where it falls, probability leaks to ads that no pair names.

    Args:
        logprobs: ``(B, R, L)`` token log-probabilities.
        shared: ``(B, R - 1)`` what `shared_codes` gives.

    Returns:
        ``(B, R - 1)``, 1 where nothing is shared.
    """
    levels = torch.arange(logprobs.shape[2], device=logprobs.device)
    return (logprobs[:, :1] * (levels < shared[..., None])).sum(dim=-1).exp()


def running_names(levels: int) -> list[str]:
    """The names of `Observed.sums` for S-IDs of so many codes.

    Example:
        >>> running_names(2)
        ['chosen_drop', 'prefix_mass', 'margin@0', 'margin@1']
    """
    return ["chosen_drop", "prefix_mass", *(f"margin@{level}" for level in range(levels))]
