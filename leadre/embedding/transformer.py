"""Embeddings from a pre-trained encoder of Transformers."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize as to_unit_length
from transformers import (
    AutoModel,
    AutoTokenizer,
    BatchEncoding,
    CLIPTextModelWithProjection,
    PreTrainedModel,
    T5EncoderModel,
)

from leadre.embedding.pooling import pool
from leadre.embedding.weights import no_weights

Encode = Callable[[Sequence[str]], NDArray[np.float32]]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TOWERS: dict[str, Any] = {
    "auto": AutoModel,
    "clip_text": CLIPTextModelWithProjection,
    "t5_encoder": T5EncoderModel,
}


def transformer_encoder(
    model: str,
    *,
    revision: str | None,
    tower: Literal["auto", "clip_text", "t5_encoder"],
    pooling: Literal["mean", "cls", "last", "projection"],
    instruction: str,
    normalize: bool,
    max_tokens: int,
    batch_tokens: int,
    precision: Literal["fp32", "bf16"],
    device: str,
) -> Encode:
    """Load an encoder; the result embeds N texts to ``(N, D)`` vectors.

    Texts are taken by length, longest first, so that little is padded and memory runs out at once or never. Padding
    stands on the right whatever the tokenizer was trained with: absolute positions then begin at the first token,
    relative ones do not care, and a causal decoder never sees it. A text without any token has the zero vector.

    Args:
        model: A folder, or a name on the Hugging Face hub.
        revision: Commit on the hub.
        tower: Which part of the model reads text: ``auto`` the whole of it, ``clip_text`` the text tower of CLIP,
            ``t5_encoder`` a T5 without its decoder.
        pooling: As for `leadre.embedding.pooling.pool`, or ``projection``: CLIP's own, its end token brought into
            the space that it shares with pictures.
        instruction: Put before every text.
        normalize: Bring vectors to length 1.
        max_tokens: Texts are cut to so many tokens, the instruction and the tokenizer's special tokens included.
        batch_tokens: Tokens at once, padding included; a longer text stands alone.
        precision: Of the encoder's weights; pooling and normalization are in fp32.
        device: Where the encoder runs.

    Raises:
        ValueError: If the weights are not whole, or are of another architecture, or ``tower`` is not one that reads
            text alone, or the encoder cannot take so many tokens.
    """
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(model, revision=revision)
        encoder, loaded = _TOWERS[tower].from_pretrained(
            model, revision=revision, dtype=_DTYPES[precision], output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise no_weights(model, f"it cannot be loaded: {str(error).strip().splitlines()[0]}") from error
    _check_tower(model, tower, encoder)
    _check_whole(model, loaded["missing_keys"])
    if max_tokens > (most := min(tokenizer.model_max_length, _positions(encoder))):
        raise ValueError(
            f"embedding.max_tokens is {max_tokens}, but {model} takes {most} tokens: use embedding.max_tokens={most}"
        )
    tokenizer.padding_side = "right"
    if tokenizer.pad_token is None:  # decoders are trained without padding; the mask hides what stands there
        tokenizer.pad_token = tokenizer.eos_token
    encoder.to(device).eval()

    width = encoder.config.projection_dim if pooling == "projection" else encoder.config.hidden_size

    def encode(texts: Sequence[str]) -> NDArray[np.float32]:
        tokens = tokenizer([instruction + text for text in texts], truncation=True, max_length=max_tokens)
        lengths = np.array([len(ids) for ids in tokens["input_ids"]])
        result = np.zeros((len(texts), width), dtype=np.float32)
        for rows in _batches(lengths, batch_tokens=batch_tokens):
            chosen = {name: [column[row] for row in rows] for name, column in tokens.items()}
            vectors = _vectors(encoder, tokenizer.pad(chosen, return_tensors="pt").to(device), pooling=pooling)
            result[rows] = (to_unit_length(vectors, dim=-1) if normalize else vectors).cpu().numpy()
        return result

    return encode


@torch.inference_mode()
def _vectors(
    encoder: PreTrainedModel,
    batch: BatchEncoding,
    *,
    pooling: Literal["mean", "cls", "last", "projection"],
) -> torch.Tensor:
    states = encoder(**batch)
    if pooling == "projection":
        return torch.as_tensor(states.text_embeds).float()
    return pool(states.last_hidden_state, batch["attention_mask"], pooling=pooling)


def _batches(lengths: NDArray[np.int64], *, batch_tokens: int) -> Iterator[NDArray[np.int64]]:
    """Rows by length, longest first, so many that they fill ``batch_tokens``; rows of length zero are left out."""
    order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
    while len(order):
        size = max(1, batch_tokens // int(lengths[order[0]]))
        yield order[:size]
        order = order[size:]


def _positions(encoder: PreTrainedModel) -> float:
    """How many tokens have a position; infinite where positions are relative."""
    most = getattr(encoder.config, "max_position_embeddings", None) or 0
    table = getattr(getattr(encoder, "embeddings", None), "position_embeddings", None)
    padding = getattr(table, "padding_idx", None)  # RoBERTa and its kin count positions from the one after it
    return most - (0 if padding is None else padding + 1) if most > 0 else math.inf


def _check_tower(model: str, tower: str, encoder: PreTrainedModel) -> None:
    needed = {"clip": "clip_text", "t5": "t5_encoder"}.get(encoder.config.model_type)
    if tower == "auto" and needed:
        raise ValueError(
            f"embedding.tower is 'auto', but the whole of {model} ({encoder.config.model_type}) needs more than a "
            f"text: use embedding.tower={needed}"
        )


def _check_whole(model: str, missing: Iterable[str]) -> None:
    """Refuse weights that a random start would stand in for; a pooler that no pooling reads may be missing."""
    needed = sorted(name for name in missing if not name.startswith("pooler."))
    if needed:
        raise no_weights(model, f"{len(needed)} of its weights are missing, the first is {needed[0]}")
