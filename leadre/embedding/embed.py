"""The stage `embeddings`: the description of each ad to a vector (LEADRE 3.2)."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import assert_never

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from leadre import tables
from leadre.embedding.cache import cache_folder, read_cache, write_cache
from leadre.embedding.config import EmbeddingConfig, HashingConfig, LSAConfig, TransformerConfig, VectorsConfig
from leadre.embedding.fingerprint import fingerprint
from leadre.embedding.given import given_vectors
from leadre.embedding.hashing import hashing_vectors
from leadre.embedding.keyed import Keyed, rows_of
from leadre.embedding.weights import find
from leadre.training.config import ComputeConfig
from leadre.training.device import set_up_device

VERSION = 2
log = logging.getLogger(__name__)

_SHARD = 16384
"""Texts that are embedded and then stored at once: what a kill may cost."""
_WHERE = {"kind", "model", "revision", "package", "sha256"}
"""Settings that tell where an encoder's weights lie; all others tell how it embeds."""


def embed(
    config: EmbeddingConfig,
    world: Path,
    previous: Path | None = None,
    *,
    out: Path,
    compute: ComputeConfig,
    cache: Path | None = None,
) -> None:
    """Embed the descriptions of all ads of a world.

    Each distinct text is embedded once, so that equal texts have equal vectors bit by bit, wherever they would
    have stood in a batch. Vectors that were made elsewhere belong to their ads, not to texts: what is coded as one
    text is then one vector, and ``text_key`` tells vectors apart.

    Args:
        config: Which encoder, and its numbers.
        world: Folder with ``ads.parquet``.
        previous: An earlier result of this stage. The vectors of its texts (of its ads, where vectors were made
            elsewhere) are taken over bit by bit, and what was fitted then embeds new texts as it stands.
        out: Gets ``vectors.safetensors`` (``x``, ``(N, D)`` float32, row i is ad i of the world), ``rows.parquet``
            (`leadre.tables.ROWS`), ``embedding.json``, and of LSA what was fitted.
        compute: Device of a pre-trained encoder.
        cache: Where vectors of pre-trained encoders are kept across results.

    Raises:
        ValueError: If the world has no ads, a vector is not finite, ``previous`` was made by another encoder, or an
            encoder's weights, a shard of the cache or a given vector are missing or broken.
    """
    ads = tables.read(tables.ADS, world / "ads.parquet")
    if ads.is_empty():
        raise ValueError(f"{world / 'ads.parquet'} has no ads: there is nothing to embed")
    descriptions, by_ad = ads["description"].to_list(), isinstance(config, VectorsConfig)
    keys = ads["ad_id"].to_list() if by_ad else [_key(text.encode()) for text in descriptions]
    made_from = fingerprint(config)
    kept = _kept(config, made_from, previous, keys)
    texts = _texts(keys, descriptions, known=kept.keys)
    new, told = _new_vectors(config, texts, kept=kept, previous=previous, out=out, compute=compute, cache=cache)
    x = rows_of([kept, Keyed(list(texts), new)], keys)
    rows = ads.select("ad_id", pl.Series("text_key", [_key(row.tobytes()) for row in x] if by_ad else keys))
    told |= {
        "kind": config.kind,
        "made_from": made_from,
        "dimension": x.shape[1],
        "num_ads": len(x),
        "num_texts": rows["text_key"].n_unique(),
        "num_new": len(texts),
        "num_zero": int((x == 0).all(1).sum()),
    }
    save_file({"x": x}, out / "vectors.safetensors")
    tables.write(tables.ROWS, rows, out / "rows.parquet")
    (out / "embedding.json").write_text(json.dumps(told, indent=1))
    log.info(
        "%(num_ads)s ads, %(num_texts)s distinct texts, %(num_new)s new, %(num_zero)s zero, dimension %(dimension)s",
        told,
    )


def _key(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _kept(config: EmbeddingConfig, made_from: str, previous: Path | None, keys: Sequence[str]) -> Keyed:
    """Of an earlier result the vectors whose keys are still asked for, each once."""
    if previous is None:
        return Keyed([], np.empty((0, 0), np.float32))
    told = json.loads((previous / "embedding.json").read_text())
    if told["kind"] != config.kind:
        raise ValueError(
            f"previous {previous} was made by embedding.kind={told['kind']!r}, but now it is {config.kind!r}: "
            "vectors of two encoders cannot be compared; keep the encoder, or begin without the previous result"
        )
    if told["made_from"] != made_from and not isinstance(config, VectorsConfig):  # files of vectors change every day
        raise ValueError(
            f"previous {previous} was made by other weights ({told['made_from']}, now {made_from}): vectors of two "
            "encoders cannot be compared; keep the weights, or begin without the previous result"
        )
    name = "ad_id" if isinstance(config, VectorsConfig) else "text_key"
    asked = tables.read(tables.ROWS, previous / "rows.parquet").with_row_index("row")
    asked = asked.unique(name, keep="first", maintain_order=True).filter(pl.col(name).is_in(set(keys)))
    return Keyed(asked[name].to_list(), load_file(previous / "vectors.safetensors")["x"][asked["row"].to_numpy()])


def _texts(keys: Sequence[str], descriptions: Sequence[str], *, known: Sequence[str]) -> dict[str, str]:
    """The descriptions that have no vector yet, by their keys, in an order that the order of the ads cannot change."""
    passed_over = set(known)
    new = {key: text for key, text in zip(keys, descriptions, strict=True) if key not in passed_over}
    return dict(sorted(new.items()))


def _new_vectors(
    config: EmbeddingConfig,
    texts: Mapping[str, str],
    *,
    kept: Keyed,
    previous: Path | None,
    out: Path,
    compute: ComputeConfig,
    cache: Path | None,
) -> tuple[NDArray[np.float32], dict[str, object]]:
    """Vectors of new texts, row by row, and what is to be told of their making."""
    values = list(texts.values())
    match config:
        case LSAConfig():
            return _finite(_lsa_vectors(config, values, previous=previous, out=out), values), {}
        case HashingConfig():
            return _finite(hashing_vectors(values, dimension=config.dimension), values), {}
        case TransformerConfig():
            return _transformer_vectors(config, texts, compute=compute, cache=cache), {}
        case VectorsConfig():
            path = Path(config.path)
            x, num_unknown, num_changed = given_vectors(path, list(texts), kept=kept)
            if num_changed:
                log.warning("%s has other vectors of %s ads than before: they keep the old ones", path, num_changed)
            return x, {"num_unknown": num_unknown, "num_changed": num_changed}
        case _:
            assert_never(config)


def _lsa_vectors(config: LSAConfig, texts: Sequence[str], *, previous: Path | None, out: Path) -> NDArray[np.float32]:
    from leadre.embedding import lsa  # scikit-learn is heavy

    fitted = (
        lsa.load(previous)
        if previous is not None
        else lsa.fit(
            texts,
            dimension=config.dimension,
            analyzer=config.analyzer,
            ngrams=config.ngrams,
            max_terms=config.max_terms,
            seed=config.seed,
        )
    )
    lsa.save(fitted, out)
    return lsa.transform(fitted, texts)


def _transformer_vectors(
    config: TransformerConfig, texts: Mapping[str, str], *, compute: ComputeConfig, cache: Path | None
) -> NDArray[np.float32]:
    """Vectors from the cache, and of texts that it does not hold from the encoder, which is loaded only for them."""
    model, revision, weights = find(config)
    how = {name: value for name, value in asdict(config).items() if name not in _WHERE}
    changes_numbers = {name: value for name, value in how.items() if name != "batch_tokens"} | {"weights": weights}
    folder = None if cache is None else cache_folder(cache, config.model, changes_numbers)
    parts = [] if folder is None else read_cache(folder, list(texts))
    cached = {key for part in parts for key in part.keys}
    missing = sorted(texts.keys() - cached, key=lambda key: (-len(texts[key]), key))  # see transformer_encoder
    if missing:
        from leadre.embedding.transformer import transformer_encoder  # Transformers is heavy

        log.info("%s texts are in the cache, %s are embedded by %s", len(cached), len(missing), model)
        encode = transformer_encoder(model, revision=revision, **how, device=str(set_up_device(compute)))
        for start in range(0, len(missing), _SHARD):
            keys = missing[start : start + _SHARD]
            chosen = [texts[key] for key in keys]
            parts.append(Keyed(keys, _finite(encode(chosen), chosen)))
            if folder is not None:
                write_cache(folder, parts[-1])
    return rows_of(parts, list(texts))


def _finite(x: NDArray[np.float32], texts: Sequence[str]) -> NDArray[np.float32]:
    broken = np.flatnonzero(~np.isfinite(x).all(1))
    if len(broken):
        raise ValueError(
            f"vectors of {len(broken)} texts are not finite, the first is that of {texts[broken[0]]!r}: "
            "with a pre-trained encoder use embedding.precision=fp32"
        )
    return x
