"""The losses of preference alignment, as pure functions of log-probabilities (LEADRE 4.3.2, 5.2.3).

Each gives one number a row, so that the caller weighs rows: a batch may be split over devices without a change.
"""

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
        ``(B,)``.

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
    _check_beta(beta)
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(
            f"label_smoothing is {label_smoothing}, but at 0.5 and above a pair says nothing or the opposite: "
            "use 0 to below 0.5"
        )
    reward_gap = beta * ((chosen - rejected) - (reference_chosen - reference_rejected))
    return -F.logsigmoid(reward_gap) + label_smoothing * reward_gap


def ipo_loss(
    chosen: Tensor, rejected: Tensor, *, reference_chosen: Tensor, reference_rejected: Tensor, beta: float
) -> Tensor:
    """Identity Preference Optimization (Azar et al. 2023, eq. 17): ``(h - 1 / (2 beta))^2``, with h as in `dpo_loss`.

    The margin is drawn to ``1 / (2 beta)`` nats and no farther, where DPO's would grow without end on pairs that are
    always in the same order. Log-probabilities are summed, as in the paper; TRL takes their means over tokens.

    Args:
        chosen: As in `dpo_loss`, ``(B,)``.
        rejected: As in `dpo_loss`, ``(B,)``.
        reference_chosen: As in `dpo_loss`, ``(B,)``.
        reference_rejected: As in `dpo_loss`, ``(B,)``.
        beta: Above 0; the target margin is ``1 / (2 beta)``.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: If ``beta`` is not above 0.

    Example:
        h = 2, and the target is 1 / (2 * 0.25) = 2.

        >>> one = torch.ones(1)
        >>> float(ipo_loss(-1 * one, -3 * one, reference_chosen=one, reference_rejected=one, beta=0.25))
        0.0
    """
    _check_beta(beta)
    gap = (chosen - rejected) - (reference_chosen - reference_rejected)
    return (gap - 1 / (2 * beta)) ** 2


def sdpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    *,
    reference_chosen: Tensor,
    reference_rejected: Tensor,
    present: Tensor,
    beta: float,
) -> Tensor:
    """Softmax-DPO of one preferred response against several (Chen et al. 2024, S-DPO, eq. 11).

    With ``d = log p - log p_ref`` the loss is ``-log sigmoid(-log sum_l exp(beta (d_l - d_chosen)))``: that of DPO for
    a single other response, and ``log(1 + n)`` for n of them where policy and reference agree.

    Args:
        chosen: Summed log-probability of the preferred response under the policy, ``(B,)``.
        rejected: Of the n others, ``(B, n)``; whatever stands where there is none.
        reference_chosen: Of the preferred response under the reference, ``(B,)``.
        reference_rejected: Of the others, ``(B, n)``.
        present: ``(B, n)`` bool, which of the others are there, at least one a row.
        beta: See `dpo_loss`.

    Returns:
        ``(B,)``.

    Raises:
        ValueError: If ``beta`` is not above 0, or a row has nothing to compare with.

    Example:
        Three others as good as the chosen one: log 4.

        >>> one, three = torch.zeros(1), torch.zeros(1, 3)
        >>> loss = sdpo_loss(one, three, reference_chosen=one, reference_rejected=three,
        ...                  present=three == 0, beta=1.0)
        >>> round(float(loss.exp()), 4)
        4.0
    """
    _check_beta(beta)
    if not bool(present.any(dim=1).all()):
        raise ValueError("present has a row without any rejected response: give every chosen one at least one")
    gaps = beta * ((rejected - reference_rejected) - (chosen - reference_chosen)[:, None])
    return F.softplus(gaps.masked_fill(~present, -torch.inf).logsumexp(dim=1))  # -log sigmoid(-x) = softplus(x)


def rank_loss(scores: Tensor, rewards: Tensor) -> Tensor:
    """Ranking loss of RRHF (Yuan et al. 2023, eq. 2): sum of ``max(0, p_i - p_j)`` over pairs with ``r_i < r_j``.

    There is no margin and no reference; equal rewards give no pair.

    Args:
        scores: Length-normalized log-probabilities p of R candidate responses, ``(B, R)``.
        rewards: Their rewards r, ``(B, R)``.

    Returns:
        ``(B,)``.

    Example:
        Only the pair (r=1, r=2) is in the wrong order, by -1 - (-4) = 3.

        >>> rank_loss(torch.tensor([[-1.0, -4.0]]), torch.tensor([[1.0, 2.0]])).tolist()
        [3.0]
    """
    worse = rewards[:, :, None] < rewards[:, None, :]  # (B, R, R): r_i < r_j
    excess = F.relu(scores[:, :, None] - scores[:, None, :])
    return (excess * worse).sum(dim=(1, 2))


def rrhf_loss(logprobs: Tensor, rewards: Tensor, *, sft_weight: float) -> Tensor:
    """RRHF: the ranking loss plus the likelihood of the best response (Yuan et al. 2023, eq. 2 to 4).

    The variant is the paper's: p is the *mean* token log-probability, the likelihood a sum over tokens.

    Args:
        logprobs: Token log-probabilities of R candidate responses of L tokens, ``(B, R, L)``.
        rewards: Their rewards, ``(B, R)``; of equal best ones the first is the target.
        sft_weight: Weight of ``-sum_t log p(best_t)``; the paper's is 1.

    Returns:
        ``(B,)``.

    Example:
        Means are -1 and -2 and the second is better: rank 1, and its two tokens cost 4.

        >>> logprobs = torch.tensor([[[-1.0, -1.0], [-1.0, -3.0]]])
        >>> rrhf_loss(logprobs, torch.tensor([[1.0, 2.0]]), sft_weight=1.0).tolist()
        [5.0]
    """
    return rank_loss(logprobs.mean(dim=-1), rewards) + sft_weight * sft_loss(_best(logprobs, rewards))


def rrhf_official_loss(logprobs: Tensor, rewards: Tensor, *, row_lengths: Tensor, sft_weight: float) -> Tensor:
    """RRHF as its authors' published training computes it, which is not what their paper says.

    Their labels, -100 at prompt and padding, are overwritten by 0 before the labeled tokens are counted: so a score
    is the summed log-probability over the length of the whole padded row, prompt included, and the likelihood is a
    mean over that row. One query at a time is what they train on, so a row's length is its own query's.

    Args:
        logprobs: Token log-probabilities of R candidate responses of L tokens, ``(B, R, L)``.
        rewards: Their rewards, ``(B, R)``.
        row_lengths: ``(B,)`` tokens of each row's prompt and longest response.
        sft_weight: Weight of the likelihood of the best response.

    Returns:
        ``(B,)``.

    Example:
        As in `rrhf_loss`, behind a prompt of six tokens: sums are -2 and -4, over a row of eight.

        >>> logprobs = torch.tensor([[[-1.0, -1.0], [-1.0, -3.0]]])
        >>> rrhf_official_loss(logprobs, torch.tensor([[1.0, 2.0]]), row_lengths=torch.tensor([8]),
        ...                    sft_weight=1.0).tolist()
        [0.75]
    """
    rank = rank_loss(logprobs.sum(dim=-1) / row_lengths[:, None], rewards)
    return rank + sft_weight * sft_loss(_best(logprobs, rewards)) / row_lengths


def sft_loss(logprobs: Tensor) -> Tensor:
    """Negative log-likelihood of a response, summed over its tokens: ``(B, L)`` to ``(B,)``."""
    return -logprobs.sum(dim=-1)


def _best(logprobs: Tensor, rewards: Tensor) -> Tensor:
    """The token log-probabilities ``(B, L)`` of the response of the highest reward."""
    best = rewards.argmax(dim=1)
    return logprobs[torch.arange(len(best), device=best.device), best]


def _check_beta(beta: float) -> None:
    if not beta > 0:
        raise ValueError(f"beta is {beta}, but it scales the preference and must be above 0: use about 0.1")
