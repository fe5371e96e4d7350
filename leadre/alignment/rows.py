"""Preference pairs as token rows: a user's last training prompt, and the S-IDs of the ads that are compared."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor

from leadre.alignment.preferences import codes_of
from leadre.lm.encode import RESPONSE
from leadre.lm.rows import read_rows


class Batch(NamedTuple):
    """What a training step takes; answer 0 of a row is the chosen ad, the others are rejected ones.

    Nothing in it is a floating-point tensor: in the precision bf16-true Lightning rounds those of a batch.

    Attributes:
        prompts: Token ids, right-padded with 0, ``(B, T)`` int64.
        lengths: Tokens of each prompt, ``(B,)`` int64.
        answers: Token ids of the S-IDs, ``(B, R, L)`` int64; -1 where a row has fewer answers.
        reference_bits: What `reference` is read from, ``(B, R)`` int32.
        real: ``(B,)`` bool, False for a row that only keeps a rank busy.
        total: Rows of the whole optimizer step, over all ranks and micro-batches.
    """

    prompts: Tensor
    lengths: Tensor
    answers: Tensor
    reference_bits: Tensor
    real: Tensor
    total: int

    @property
    def rejected(self) -> Tensor:
        """Which of the rejected answers are there, ``(B, R - 1)`` bool."""
        return self.answers[:, 1:, 0] >= 0

    @property
    def reference(self) -> Tensor:
        """Summed log-probability of the answers under the reference, ``(B, R)`` float32; 0 where there is no answer."""
        return self.reference_bits.view(torch.float32)

    @property
    def weights(self) -> Tensor:
        """Each row's share of the mean over the rows of the step, ``(B,)`` float32: of all parts they add up to 1."""
        return self.real.to(torch.float32) / self.total


class PreferenceRows(NamedTuple):
    """All preference rows; prompts lie one after another in the flat ``ids`` of the tokens file.

    Attributes:
        ids: ``(T,)`` token ids of all training samples.
        starts: ``(N,)`` first token of each row's prompt.
        lengths: ``(N,)`` tokens of it.
        answers: ``(N, R, L)`` token ids; -1 where a row has fewer answers.
        reference: ``(N, R)``; NaN until `leadre.alignment.reference.reference_logprobs` has filled it in.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    answers: NDArray[np.int64]
    reference: NDArray[np.float32]

    @property
    def num_pairs(self) -> int:
        """Pairs of a chosen and a rejected ad, over all rows."""
        return int((self.answers[:, 1:, 0] >= 0).sum())

    def batch(self, index: NDArray[np.int64], whole: NDArray[np.int64]) -> Batch:
        """Some rows as padded tensors.

        Args:
            index: The rows of this batch; where there are none, one stands in and weighs nothing.
            whole: All rows of the optimizer step, which its loss is the mean over.
        """
        shown = index if len(index) else whole[:1]
        lengths = self.lengths[shown]
        prompts = np.zeros((len(shown), int(lengths.max())), dtype=np.int64)
        for row, (start, length) in enumerate(zip(self.starts[shown], lengths, strict=True)):
            prompts[row, :length] = self.ids[start : start + length]
        return Batch(
            torch.from_numpy(prompts),
            torch.from_numpy(lengths),
            torch.from_numpy(self.answers[shown]),
            torch.from_numpy(self.reference[shown].view(np.int32)),
            torch.full((len(shown),), bool(len(index))),
            len(whole),
        )


def last_rows(users: pl.Series) -> pl.DataFrame:
    """The last training row of each user: columns user_id, row. Rows without a user are passed over.

    Args:
        users: The user_id column of the training pairs, in the order of the tokens file.
    """
    rows = users.to_frame("user_id").with_row_index("row").filter(pl.col("user_id").is_not_null())
    return rows.group_by("user_id").agg(pl.col("row").max().cast(pl.Int64)).sort("user_id")


def preference_rows(
    pairs: pl.DataFrame,
    sids: pl.DataFrame,
    users: pl.Series,
    tokens: Path,
    *,
    sid_offsets: tuple[int, ...],
    negatives: int = 1,
) -> PreferenceRows:
    """Join each preference pair, or each chosen ad with several rejected ones, with its user's last training prompt.

    Args:
        pairs: A PREFERENCES table; its order is that of the rows.
        sids: A SIDS table with all its ads.
        users: The user_id column of the training pairs; row n belongs to row n of ``tokens``.
        tokens: The tokens file of those pairs.
        sid_offsets: Token id of code 0 of each level.
        negatives: Rejected ads a row. Above 1, the rejected ads of one user's chosen ad share rows, in the order of
            the table; none is left out, as what is beyond ``negatives`` makes further rows.

    Raises:
        ValueError: If the tokens are of other pairs, a user has no prompt in them, or the S-IDs have another number of
            levels than the model.
    """
    pairs = pairs.sort("user_id", "chosen_ad", "rejected_ad")
    encoded = read_rows(tokens, num_rows=len(users))
    codes = np.stack([codes_of(pairs["chosen_ad"], sids), codes_of(pairs["rejected_ad"], sids)], axis=1)
    if codes.shape[-1] != len(sid_offsets):
        raise ValueError(
            f"sids has {codes.shape[-1]} codes an ad, but the model has tokens for {len(sid_offsets)} levels: "
            "take the catalog that the model was built for"
        )
    prompted = pairs.join(last_rows(users), on="user_id", how="left", maintain_order="left")
    if prompted["row"].null_count():
        raise ValueError(
            f"preferences names the user {prompted.filter(pl.col('row').is_null())['user_id'][0]!r}, who has no "
            "training prompt: the preferences are of other prompts; make them again"
        )
    place = _places(pairs, negatives)
    row = prompted["row"].to_numpy()[place[:, 1] == 0]
    # A sample is its prompt followed by its response: leave off as many tokens as are response.
    response = np.concatenate([[0], np.cumsum(encoded.kinds == RESPONSE)])
    start, end = encoded.offsets[row], encoded.offsets[row + 1]
    answers = _side_by_side(codes + np.array(sid_offsets, dtype=np.int64), place)
    return PreferenceRows(
        ids=encoded.ids,
        starts=start,
        lengths=end - start - (response[end] - response[start]),
        answers=answers,
        reference=np.full(answers.shape[:2], np.nan, dtype=np.float32),
    )


def _places(pairs: pl.DataFrame, negatives: int) -> NDArray[np.int64]:
    """The row that each pair of the sorted table goes to, and which of the row's rejected ads it holds, ``(P, 2)``."""
    number = pairs.select(pl.int_range(pl.len()).over("user_id", "chosen_ad")).to_series().to_numpy() % negatives
    return np.stack([np.cumsum(number == 0) - 1, number], axis=1)


def _side_by_side(tokens: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.int64]:
    """The two answers of each pair ``(P, 2, L)`` as all answers of each row ``(N, R, L)``, -1 where there is none."""
    row, rejected = place.T
    answers = np.full((row.max() + 1, rejected.max() + 2, tokens.shape[2]), -1, dtype=np.int64)
    answers[row, 0] = tokens[:, 0]
    answers[row, rejected + 1] = tokens[:, 1]
    return answers
