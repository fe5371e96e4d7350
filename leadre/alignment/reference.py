"""The reference's log-probabilities, taken once before training: no second model is held while the policy moves."""

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save
from transformers import PreTrainedModel

from leadre.alignment.rows import PreferenceRows
from leadre.lm.logprob import TrieSupport, answer_logprobs


def reference_logprobs(
    model: PreTrainedModel,
    rows: PreferenceRows,
    *,
    support: TrieSupport | None,
    batch_size: int,
    device: torch.device,
    autocast: bool,
) -> NDArray[np.float32]:
    """Summed log-probability of each row's answers under the model as it is, without dropout.

    Args:
        model: The model before its alignment.
        rows: N preference rows of R answers.
        support: What a code's probability is taken among, as in training.
        batch_size: Rows at once; rows of like length go together.
        device: Where the model is run; it stays there.
        autocast: Whether matrix products are in bfloat16, as they will be in training.

    Returns:
        ``(N, R)`` float32, in the order of ``rows``; 0 where an answer is missing.
    """
    model.eval()  # type: ignore[no-untyped-call]  # Transformers leaves it untyped
    model.to(device)  # type: ignore[arg-type]  # its declared signature is that of a wrapper
    support = support and support.to(device)
    result = np.empty(rows.answers.shape[:2], dtype=np.float32)
    order = np.argsort(rows.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        batch = rows.batch(index, index)
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            logprobs = answer_logprobs(
                model, batch.prompts.to(device), batch.lengths.to(device), batch.answers.to(device), support
            )
        result[index] = logprobs.sum(dim=-1).cpu().numpy()
    return result


def stored_logprobs(
    path: Path,
    model: PreTrainedModel,
    rows: PreferenceRows,
    *,
    support: TrieSupport | None,
    batch_size: int,
    device: torch.device,
    autocast: bool,
) -> NDArray[np.float32]:
    """`reference_logprobs`, read from ``path`` if it is there and written to it otherwise.

    A training that goes on after a kill must find the very same numbers; the file is whole or absent.
    """
    if not path.exists():
        found = reference_logprobs(
            model, rows, support=support, batch_size=batch_size, device=device, autocast=autocast
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        with part.open("wb") as file:
            file.write(save({"logprobs": found}))
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    logprobs: NDArray[np.float32] = load_file(path)["logprobs"]
    return logprobs
