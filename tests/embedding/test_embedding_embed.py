"""The stage `embeddings`."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from safetensors.numpy import load_file

from leadre import tables
from leadre.embedding import embed as stage
from leadre.embedding.config import EmbeddingConfig, HashingConfig, LSAConfig
from leadre.embedding.embed import embed

CONF = Path(__file__).parents[2] / "conf"
HASHING = HashingConfig(kind="hashing", dimension=16)


def _world(folder, descriptions):
    folder.mkdir(exist_ok=True)
    text = pl.lit(None, pl.String())
    frame = pl.DataFrame(
        {"ad_id": [f"ad{i}" for i in range(len(descriptions))], "description": descriptions},
        schema={"ad_id": pl.String(), "description": pl.String()},
    )
    frame = frame.with_columns(
        *(text.alias(name) for name in ("name", "product_type", "first_category", "second_category", "spu")),
        *(pl.lit(None, pl.Int64()).alias(name) for name in ("start_time", "end_time")),
        attributes=pl.lit([], pl.List(pl.String())),
    )
    tables.write(tables.ADS, frame.select(list(tables.ADS.columns)), folder / "ads.parquet")
    return folder


def test_row_i_of_the_vectors_is_ad_i_of_the_world(tmp_path, compute):
    world = _world(tmp_path / "world", ["tea", "car", "tea", "road car"])
    embed(HASHING, world, out=tmp_path, compute=compute)
    x = load_file(tmp_path / "vectors.safetensors")["x"]
    assert (x.shape, x.dtype) == ((4, 16), np.float32)
    assert pl.read_parquet(tmp_path / "rows.parquet")["ad_id"].to_list() == ["ad0", "ad1", "ad2", "ad3"]
    assert x[0].tobytes() == x[2].tobytes() != x[1].tobytes()
    told = json.loads((tmp_path / "embedding.json").read_text())
    assert told == {"kind": "hashing", "dimension": 16, "num_ads": 4, "num_texts": 3, "num_zero": 0}


def test_lsa_embeds_a_world(tmp_path, compute):
    world = _world(tmp_path / "world", ["red tea", "blue car", "green tea", "red car"])
    config = LSAConfig(kind="lsa", seed=0, dimension=3, analyzer="word", ngrams=(1, 1), max_terms=100)
    embed(config, world, out=tmp_path, compute=compute)
    x = load_file(tmp_path / "vectors.safetensors")["x"]
    assert x.shape == (4, 3)
    assert x[0] @ x[2] > x[0] @ x[1]


def test_a_world_without_ads_is_an_error(tmp_path, compute):
    with pytest.raises(ValueError, match=r"ads.parquet has no ads"):
        embed(HASHING, _world(tmp_path / "world", []), out=tmp_path, compute=compute)


def test_a_vector_that_is_not_finite_is_an_error_that_names_its_text(tmp_path, compute, monkeypatch):
    monkeypatch.setattr(stage, "hashing_vectors", lambda texts, dimension: np.full((len(texts), dimension), np.nan))
    with pytest.raises(ValueError, match=r"vectors of 1 texts are not finite, the first is that of 'tea'"):
        embed(HASHING, _world(tmp_path / "world", ["tea"]), out=tmp_path, compute=compute)


@pytest.mark.parametrize("path", sorted((CONF / "embedding").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_embedding_is_valid(path):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+embedding={path.stem}", "+seed=0"])
    plain = OmegaConf.to_container(config, resolve=True)["embedding"]
    TypeAdapter(EmbeddingConfig).validate_json(json.dumps(plain), strict=True)
