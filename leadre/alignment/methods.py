"""The methods of alignment: what each makes of the log-probabilities of a batch's answers, row by row.

All take the token log-probabilities ``(B, R, L)`` and the batch, and give a loss a row, ``(B,)``.
"""

from torch import Tensor

from leadre.alignment.losses import dpo_loss, ipo_loss, rrhf_loss, rrhf_official_loss, sdpo_loss, sft_loss
from leadre.alignment.rows import Batch


def dpo(logprobs: Tensor, batch: Batch, *, beta: float, label_smoothing: float, sft_weight: float) -> Tensor:
    """DPO with a likelihood term on the chosen ad: ``L_DPO + sft_weight * -log p(chosen)`` (LEADRE 4.3.2).

    DPO alone widens the margin also where both log-probabilities fall, and says nothing about the codes that two
    S-IDs share; the likelihood term holds both. Our choice: the paper does not speak of it.
    """
    chosen, rejected = logprobs.sum(dim=-1).unbind(dim=1)
    reference_chosen, reference_rejected = batch.reference.unbind(dim=1)
    losses = dpo_loss(
        chosen,
        rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
        beta=beta,
        label_smoothing=label_smoothing,
    )
    return losses - sft_weight * chosen


def ipo(logprobs: Tensor, batch: Batch, *, beta: float, sft_weight: float) -> Tensor:
    """IPO, with the same likelihood term."""
    chosen, rejected = logprobs.sum(dim=-1).unbind(dim=1)
    reference_chosen, reference_rejected = batch.reference.unbind(dim=1)
    losses = ipo_loss(
        chosen, rejected, reference_chosen=reference_chosen, reference_rejected=reference_rejected, beta=beta
    )
    return losses - sft_weight * chosen


def sdpo(logprobs: Tensor, batch: Batch, *, beta: float, sft_weight: float) -> Tensor:
    """DPO against several rejected ads at once, with the same likelihood term."""
    answers = logprobs.sum(dim=-1)
    losses = sdpo_loss(
        answers[:, 0],
        answers[:, 1:],
        reference_chosen=batch.reference[:, 0],
        reference_rejected=batch.reference[:, 1:],
        present=batch.rejected,
        beta=beta,
    )
    return losses - sft_weight * answers[:, 0]


def rrhf(logprobs: Tensor, batch: Batch, *, sft_weight: float) -> Tensor:
    """RRHF by its paper."""
    return rrhf_loss(logprobs, _rewards(logprobs), sft_weight=sft_weight)


def rrhf_official(logprobs: Tensor, batch: Batch, *, sft_weight: float) -> Tensor:
    """RRHF by its authors' code; a row is a prompt and an S-ID."""
    row_lengths = batch.lengths + logprobs.shape[2]
    return rrhf_official_loss(logprobs, _rewards(logprobs), row_lengths=row_lengths, sft_weight=sft_weight)


def sft_on_chosen(logprobs: Tensor, batch: Batch) -> Tensor:
    """The control: the likelihood of the chosen ads alone."""
    return sft_loss(logprobs[:, 0])


def _rewards(logprobs: Tensor) -> Tensor:
    """Only the order of rewards counts: 1 for the chosen ad and 0 for the other, ``(B, 2)``."""
    return logprobs.new_tensor([1.0, 0.0]).expand(len(logprobs), -1)
