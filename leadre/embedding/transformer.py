"""Embeddings from a pre-trained encoder: any of Transformers or sentence-transformers."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from torch.nn.functional import normalize as to_unit_length
from transformers import AutoModel, AutoTokenizer

from leadre.embedding.pooling import pool

Precision = Literal["fp32", "bf16"]
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def transformer_vectors(
    texts: Sequence[str],
    *,
    model: str,
    revision: str | None,
    pooling: Literal["mean", "cls", "last"],
    instruction: str,
    normalize: bool,
    max_tokens: int,
    batch_size: int,
    precision: Precision,
    device: str,
) -> NDArray[np.float32]:
    """Embed texts with an encoder and a pooling of its last states.

    Texts are taken by length, longest first, so that little is padded and memory runs out at once or never.

    Args:
        texts: N texts.
        model: A local folder or a name on the Hugging Face hub.
        revision: Branch, tag or commit on the hub.
        pooling: As for `leadre.embedding.pooling.pool`.
        instruction: Put before every text.
        normalize: Bring vectors to length 1.
        max_tokens: Texts are cut to so many tokens, the instruction included.
        batch_size: Texts at once.
        precision: Of the encoder's weights; pooling is in fp32.
        device: Where the encoder runs.

    Returns:
        ``(N, D)`` vectors.

    Raises:
        ValueError: If the encoder's files are not there.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model, revision=revision)
        encoder = AutoModel.from_pretrained(model, revision=revision, dtype=_DTYPES[precision]).to(device).eval()
    except (OSError, ValueError) as error:
        raise _no_weights(model, error) from error
    if tokenizer.pad_token is None:  # decoders are trained without padding; the mask hides what stands there
        tokenizer.pad_token = tokenizer.eos_token
    order = np.argsort([-len(text) for text in texts], kind="stable")
    parts = []
    for start in range(0, len(texts), batch_size):
        chosen = [instruction + texts[row] for row in order[start : start + batch_size]]
        tokens = tokenizer(chosen, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt").to(device)
        with torch.inference_mode():
            states = encoder(**tokens).last_hidden_state.float()
            vectors = pool(states, tokens["attention_mask"], pooling=pooling)
            parts.append((to_unit_length(vectors, dim=-1) if normalize else vectors).cpu().numpy())
    sorted_vectors = np.concatenate(parts)
    result = np.empty_like(sorted_vectors)
    result[order] = sorted_vectors
    return result


def sentence_transformer_vectors(
    texts: Sequence[str],
    *,
    model: str,
    revision: str | None,
    instruction: str,
    normalize: bool,
    max_tokens: int,
    batch_size: int,
    precision: Precision,
    device: str,
) -> NDArray[np.float32]:
    """Embed texts with the modules that a sentence-transformers model brings along.

    Args and result are as for `transformer_vectors`; the pooling is the model's own.

    Raises:
        ValueError: If the encoder's files are not there.
    """
    try:
        encoder = SentenceTransformer(
            model, revision=revision, device=device, model_kwargs={"dtype": _DTYPES[precision]}
        )
    except (OSError, ValueError) as error:
        raise _no_weights(model, error) from error
    encoder.max_seq_length = max_tokens
    vectors = encoder.encode(
        [instruction + text for text in texts],
        batch_size=batch_size,
        normalize_embeddings=normalize,
        convert_to_tensor=True,
        show_progress_bar=False,
    )
    return np.asarray(vectors.float().cpu().numpy())


def _no_weights(model: str, error: Exception) -> ValueError:
    return ValueError(
        f"embedding.model is {model!r}, but its weights, config or tokenizer could not be loaded "
        f"({str(error).strip().splitlines()[0]}); give a local folder that holds them (embedding.model=PATH), make the "
        "Hugging Face hub reachable, or use embedding=lsa, which needs no weights and works offline"
    )
