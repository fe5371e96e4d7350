"""Vectors of texts that were embedded before, on disk, shared by runs and processes.

A folder holds the vectors of one encoder with one set of settings, in shards that are never changed:
``<time>-<random>.safetensors`` with ``x`` ``(N, D)`` float32, then ``<time>-<random>.parquet`` with the text of each
row (``text_key``) and, as metadata, the sha256 of the former. The Parquet file is written last: its presence means
whole. Vectors without one were left by a kill and count for nothing.
"""

import hashlib
import io
import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import polars as pl
from numpy.typing import NDArray
from safetensors.numpy import load, save

from leadre.embedding.keyed import Keyed

VERSION = 1
"""Raised when pre-trained encoders give other numbers with the same settings: what was stored is embedded anew."""


def cache_folder(root: Path, name: str, changes_numbers: Mapping[str, object]) -> Path:
    """The folder of an encoder: its name for people, and a key of all that changes the numbers."""
    told = json.dumps({**changes_numbers, "version": VERSION}, sort_keys=True)
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    return root / f"{Path(name).name}-{key}"


def read_cache(folder: Path, keys: Sequence[str]) -> list[Keyed]:
    """The vectors that are there, of the texts that are asked for; of two vectors of a text the older one.

    The keys of all shards are read first, then vectors of those shards alone that hold some of the texts.

    Raises:
        ValueError: If a shard is broken.
    """
    shards = sorted(folder.glob("*.parquet"))
    if not shards:
        return []
    held = pl.concat([_keys(shard).with_columns(shard=pl.lit(number)) for number, shard in enumerate(shards)])
    asked = pl.DataFrame({"text_key": keys}, schema={"text_key": pl.String()})
    found = held.unique("text_key", keep="first", maintain_order=True).join(asked, on="text_key", how="semi")
    return [
        Keyed(part["text_key"].to_list(), _vectors(shards[number])[part["row"].to_numpy()])
        for (number,), part in sorted(found.group_by("shard"))
    ]


def write_cache(folder: Path, vectors: Keyed) -> None:
    """Add a shard; several processes may do so at once."""
    folder.mkdir(parents=True, exist_ok=True)
    shard = folder / f"{time.time_ns():020d}-{uuid4().hex}.parquet"
    content = save({"x": np.ascontiguousarray(vectors.x)})
    keys = io.BytesIO()
    pl.DataFrame({"text_key": vectors.keys}, schema={"text_key": pl.String()}).write_parquet(
        keys, metadata={"sha256": hashlib.sha256(content).hexdigest()}
    )
    _write_whole(shard.with_suffix(".safetensors"), content)
    _write_whole(shard, keys.getvalue())


def _keys(shard: Path) -> pl.DataFrame:
    """``text_key`` and ``row`` of a shard."""
    try:
        return pl.read_parquet(shard, columns=["text_key"]).with_row_index("row")
    except (pl.exceptions.PolarsError, OSError) as error:
        raise _broken(shard, str(error).strip().splitlines()[0]) from error


def _vectors(shard: Path) -> NDArray[np.float32]:
    path = shard.with_suffix(".safetensors")
    if not path.is_file():
        raise _broken(shard, f"{path.name} is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != pl.read_parquet_metadata(shard).get("sha256"):
        raise _broken(shard, f"{path.name} differs from its sha256")
    return np.asarray(load(content)["x"])


def _write_whole(path: Path, content: bytes) -> None:
    unfinished = path.with_name(path.name + ".part")
    with unfinished.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def _broken(shard: Path, reason: str) -> ValueError:
    return ValueError(
        f"the shard {shard} of the embedding cache is broken ({reason}): delete {shard.name} and "
        f"{shard.with_suffix('.safetensors').name}, and their texts are embedded anew"
    )
