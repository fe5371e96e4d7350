"""The losses of preference alignment, as pure functions of log-probabilities (LEADRE 4.3.2, 5.2.3)."""

import torch
import torch.nn.functional as F  # noqa: N812 - the name everybody knows it by
from torch import Tensor


def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    beta: float,
    label_smoothing: float,
) -> Tensor:
    """Direct Preference Optimization (Rafailov et al. 2023, eq. 7), with smoothed labels if asked (cDPO).

    With ``h = (chosen - rejected) - (reference_chosen - reference_rejected)`` the loss of a pair is
    ``-(1 - e) log sigmoid(beta h) - e log sigmoid(-beta h)``, computed as ``-log sigmoid(beta h) + e beta h``,
    which is exactly log 2 where policy and reference agree.

    Args:
        chosen: Summed log-probability of the preferred response under the policy, ``(B,)``.
        rejected: The same of the other response, ``(B,)``.
        reference_chosen: Of the preferred response under the frozen reference, ``(B,)``.
        reference_rejected: Of the other response under the reference, ``(B,)``.
        beta: Strength of the pull to the reference, above 0; small values let the policy go farther.
        label_smoothing: Assumed share of pairs whose order is wrong, in ``[0, 0.5)``; 0 is plain DPO.

    Returns:
        The mean over the pairs, a scalar.

    Raises:
        ValueError: If ``beta`` or ``label_smoothing`` is out of its range.

    Example:
        h = (-1 + 3) - (-2 + 2) = 2, so the loss is log(1 + exp(-0.5 * 2)) = 0.3133.

        >>> one = torch.ones(1)
        >>> loss = dpo_loss(-1 * one, -3 * one, reference_chosen=-2 * one, reference_rejected=-2 * one,
        ...                 beta=0.5, label_smoothing=0.0)
        >>> round(float(loss), 4)
        0.3133
    """
    if not beta > 0:
        raise ValueError(f"beta is {beta}, but it scales the preference and must be above 0: use about 0.1")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but at 0.5 and above a pair says nothing or the opposite: "
            "use 0 to below 0.5"
        )
    reward_gap = beta * ((chosen - rejected) - (reference_chosen - reference_rejected))
    return (-F.logsigmoid(reward_gap) + label_smoothing * reward_gap).mean()


def rank_loss(scores: Tensor, rewards: Tensor) -> Tensor:
    """Ranking loss of RRHF (Yuan et al. 2023, eq. 2): sum of ``max(0, p_i - p_j)`` over pairs with ``r_i < r_j``.

    There is no margin and no reference; equal rewards give no pair.

    Args:
        scores: Length-normalized log-probabilities p of R candidate responses, ``(B, R)``.
        rewards: Their rewards r, ``(B, R)``.

    Returns:
        The mean over the rows, a scalar.

    Example:
        Only the pair (r=1, r=2) is in the wrong order, by -1 - (-4) = 3.

        >>> float(rank_loss(torch.tensor([[-1.0, -4.0]]), torch.tensor([[1.0, 2.0]])))
        3.0
    """
    worse = rewards[:, :, None] < rewards[:, None, :]  # (B, R, R): r_i < r_j
    excess = F.relu(scores[:, :, None] - scores[:, None, :])
    return (excess * worse).sum(dim=(1, 2)).mean()


def rrhf_loss(logprobs: Tensor, rewards: Tensor, *, sft_weight: float) -> Tensor:
    """RRHF: the ranking loss plus the likelihood of the best response (Yuan et al. 2023, eq. 2 to 4).

    The variant is the paper's: p is the *mean* token log-probability. (The authors' code overwrites its labels
    before it takes the length and ranks by another scale.)

    Args:
        logprobs: Token log-probabilities of R candidate responses of L tokens, ``(B, R, L)``.
        rewards: Their rewards, ``(B, R)``; of equal best ones the first is the target.
        sft_weight: Weight of ``-sum_t log p(best_t)``; the paper's is 1.

    Returns:
        The mean over the rows, a scalar.

    Example:
        Means are -1 and -2 and the second is better: rank 1, and its two tokens cost 4.

        >>> logprobs = torch.tensor([[[-1.0, -1.0], [-1.0, -3.0]]])
        >>> float(rrhf_loss(logprobs, torch.tensor([[1.0, 2.0]]), sft_weight=1.0))
        5.0
    """
    best = rewards.argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    sft = -logprobs[rows, best].sum(dim=-1).mean()
    return rank_loss(logprobs.mean(dim=-1), rewards) + sft_weight * sft
