"""The stage `embeddings`: the description of each ad to a vector (LEADRE 3.2)."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from leadre import tables
from leadre.embedding.config import EmbeddingConfig, HashingConfig, LSAConfig, TransformerConfig
from leadre.embedding.hashing import hashing_vectors
from leadre.training.config import ComputeConfig
from leadre.training.device import set_up_device

VERSION = 1
log = logging.getLogger(__name__)


def embed(config: EmbeddingConfig, world: Path, *, out: Path, compute: ComputeConfig) -> None:
    """Embed the descriptions of all ads of a world.

    Each distinct text is embedded once, so that equal texts have equal vectors bit by bit, wherever they would
    have stood in a batch.

    Args:
        config: Which encoder, and its numbers.
        world: Folder with ``ads.parquet``.
        out: Gets ``vectors.safetensors`` (``x``, ``(N, D)`` float32, row i is ad i of the world), ``rows.parquet``
            (their ``ad_id``) and ``embedding.json``.
        compute: Device of a pre-trained encoder.

    Raises:
        ValueError: If the world has no ads, a vector is not finite, or an encoder's weights are not there.
    """
    ads = tables.read(tables.ADS, world / "ads.parquet")
    if ads.is_empty():
        raise ValueError(f"{world / 'ads.parquet'} has no ads: there is nothing to embed")
    texts = ads["description"].unique().sort().to_list()
    distinct = _vectors(config, texts, compute)
    _check_finite(distinct, texts)
    row_of = {text: row for row, text in enumerate(texts)}
    x = distinct[[row_of[text] for text in ads["description"]]]
    save_file({"x": x}, out / "vectors.safetensors")
    ads.select("ad_id").write_parquet(out / "rows.parquet")
    zeros = int((x == 0).all(1).sum())
    told = {"kind": config.kind, "dimension": x.shape[1], "num_ads": len(x), "num_texts": len(texts), "num_zero": zeros}
    (out / "embedding.json").write_text(json.dumps(told, indent=1))
    log.info("%s ads, %s distinct texts, %s of their vectors zero, dimension %s", len(x), len(texts), zeros, x.shape[1])


def _vectors(config: EmbeddingConfig, texts: Sequence[str], compute: ComputeConfig) -> NDArray[np.float32]:
    # The libraries are heavy, so each is imported only for its own kind.
    match config:
        case LSAConfig():
            from leadre.embedding.lsa import lsa_vectors

            return lsa_vectors(
                texts,
                dimension=config.dimension,
                analyzer=config.analyzer,
                ngrams=config.ngrams,
                max_terms=config.max_terms,
                seed=config.seed,
            )
        case HashingConfig():
            return hashing_vectors(texts, dimension=config.dimension)
        case TransformerConfig():
            return _encoded(config, texts, device=str(set_up_device(compute)))


def _encoded(config: TransformerConfig, texts: Sequence[str], *, device: str) -> NDArray[np.float32]:
    from leadre.embedding.transformer import sentence_transformer_vectors, transformer_vectors

    if config.pooling == "sentence_transformers":
        return sentence_transformer_vectors(
            texts,
            model=config.model,
            revision=config.revision,
            instruction=config.instruction,
            normalize=config.normalize,
            max_tokens=config.max_tokens,
            batch_size=config.batch_size,
            precision=config.precision,
            device=device,
        )
    return transformer_vectors(
        texts,
        model=config.model,
        revision=config.revision,
        pooling=config.pooling,
        instruction=config.instruction,
        normalize=config.normalize,
        max_tokens=config.max_tokens,
        batch_size=config.batch_size,
        precision=config.precision,
        device=device,
    )


def _check_finite(x: NDArray[np.float32], texts: Sequence[str]) -> None:
    broken = np.flatnonzero(~np.isfinite(x).all(1))
    if len(broken):
        raise ValueError(
            f"vectors of {len(broken)} texts are not finite, the first is that of {texts[broken[0]]!r}: "
            "with a pre-trained encoder use embedding.precision=fp32 or bf16"
        )
