"""Preference pairs as token rows: a user's last training prompt, and the S-IDs of two ads."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file
from torch import Tensor

from leadre.alignment.preferences import codes_of
from leadre.lm.encode import RESPONSE


class Batch(NamedTuple):
    """What a training step takes; answer 0 of a row is the chosen ad, answer 1 the rejected one.

    Attributes:
        prompts: Token ids, right-padded with 0, ``(B, T)`` int64.
        lengths: Tokens of each prompt, ``(B,)`` int64.
        answers: Token ids of the S-IDs, ``(B, 2, L)`` int64.
        ecpms: ECPM of the ads, ``(B, 2)`` float32.
        reference: Summed log-probability of the answers under the reference, ``(B, 2)`` float32; NaN if none.
    """

    prompts: Tensor
    lengths: Tensor
    answers: Tensor
    ecpms: Tensor
    reference: Tensor


class Rows(NamedTuple):
    """All preference rows; prompts lie one after another in the flat ``ids`` of the tokens file.

    Attributes:
        ids: ``(T,)`` token ids of all training samples.
        starts: ``(N,)`` first token of each row's prompt.
        lengths: ``(N,)`` tokens of it.
        answers: ``(N, 2, L)`` token ids.
        ecpms: ``(N, 2)``.
        reference: ``(N, 2)``; NaN until `leadre.alignment.reference.reference_logprobs` has filled it in.
    """

    ids: NDArray[np.int32]
    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    answers: NDArray[np.int64]
    ecpms: NDArray[np.float32]
    reference: NDArray[np.float32]

    def batch(self, index: NDArray[np.int64]) -> Batch:
        """The rows ``index`` as padded tensors."""
        lengths = self.lengths[index]
        prompts = np.zeros((len(index), int(lengths.max())), dtype=np.int64)
        for row, (start, length) in enumerate(zip(self.starts[index], lengths, strict=True)):
            prompts[row, :length] = self.ids[start : start + length]
        return Batch(
            torch.from_numpy(prompts),
            torch.from_numpy(lengths),
            torch.from_numpy(self.answers[index]),
            torch.from_numpy(self.ecpms[index]),
            torch.from_numpy(self.reference[index]),
        )


def last_rows(users: pl.Series) -> pl.DataFrame:
    """The last training row of each user: columns user_id, row. Rows without a user are passed over.

    Args:
        users: The user_id column of the training pairs, in the order of the tokens file.
    """
    rows = users.to_frame("user_id").with_row_index("row").filter(pl.col("user_id").is_not_null())
    return rows.group_by("user_id").agg(pl.col("row").max().cast(pl.Int64)).sort("user_id")


def preference_rows(
    pairs: pl.DataFrame, sids: pl.DataFrame, users: pl.Series, tokens: Path, *, sid_offsets: tuple[int, ...]
) -> Rows:
    """Join each preference pair with its user's last training prompt.

    Args:
        pairs: A PREFERENCES table.
        sids: A SIDS table with all its ads.
        users: The user_id column of the training pairs; row n belongs to row n of ``tokens``.
        tokens: The tokens file of those pairs, with ``ids``, ``kinds`` and ``offsets``.
        sid_offsets: Token id of code 0 of each level.

    Raises:
        ValueError: If the tokens are of other pairs, or the S-IDs have another number of levels than the model.
    """
    arrays = load_file(tokens)
    offsets = arrays["offsets"]
    if len(offsets) != len(users) + 1:
        raise ValueError(
            f"tokens is {tokens} with {len(offsets) - 1} rows, but there are {len(users)} pairs: "
            "they belong to different pairs; encode the pairs again"
        )
    codes = np.stack([codes_of(pairs["chosen_ad"], sids), codes_of(pairs["rejected_ad"], sids)], axis=1)
    if codes.shape[-1] != len(sid_offsets):
        raise ValueError(
            f"sids has {codes.shape[-1]} codes an ad, but the model has tokens for {len(sid_offsets)} levels: "
            "take the catalog that the model was built for"
        )
    row = pairs.join(last_rows(users), on="user_id", how="left", maintain_order="left")["row"].to_numpy()
    # A sample is its prompt followed by its response: leave off as many tokens as are response.
    response = np.concatenate([[0], np.cumsum(arrays["kinds"] == RESPONSE)])
    lengths = offsets[row + 1] - offsets[row] - (response[offsets[row + 1]] - response[offsets[row]])
    return Rows(
        ids=arrays["ids"],
        starts=offsets[row],
        lengths=lengths,
        answers=codes + np.array(sid_offsets, dtype=np.int64),
        ecpms=pairs.select("chosen_ecpm", "rejected_ecpm").to_numpy().astype(np.float32),
        reference=np.full((len(pairs), 2), np.nan, dtype=np.float32),
    )
