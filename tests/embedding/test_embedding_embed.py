"""The stage `embeddings`: what it writes, and what it takes over from an earlier result."""

import hashlib
import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from leadre import tables
from leadre.embedding import embed as stage
from leadre.embedding.config import HashingConfig, LSAConfig
from leadre.embedding.embed import embed

HASHING = HashingConfig(kind="hashing", dimension=16)
LSA = LSAConfig(kind="lsa", seed=0, dimension=3, analyzer="word", ngrams=(1, 1), max_terms=100)
MONDAY = {"a": "red tea", "b": "blue car", "c": "green tea", "d": "red car"}
TUESDAY = {"e": "blue tea", "c": "green tea", "b": "blue car", "f": "blue tea", "g": "unheard of"}


@pytest.fixture
def run(tmp_path, make_world, compute):
    """Embed ads into a folder; returns the folder, its vectors by ad_id, and what it tells."""

    def run(config, ads, name, previous=None, **more):
        out = tmp_path / name
        out.mkdir()
        embed(config, make_world(ads, name=f"{name}_world"), previous, out=out, compute=compute, **more)
        rows = tables.read(tables.ROWS, out / "rows.parquet")
        x = dict(zip(rows["ad_id"], load_file(out / "vectors.safetensors")["x"], strict=True))
        return out, x, json.loads((out / "embedding.json").read_text())

    return run


def test_row_i_of_the_vectors_is_ad_i_of_the_world(run):
    out, _, told = run(HASHING, ["tea", "car", "tea", "road car"], "monday")
    x, rows = load_file(out / "vectors.safetensors")["x"], tables.read(tables.ROWS, out / "rows.parquet")
    assert (x.shape, x.dtype) == ((4, 16), np.float32)
    assert rows["ad_id"].to_list() == ["ad0", "ad1", "ad2", "ad3"]
    assert rows["text_key"][1] == hashlib.sha256(b"car").hexdigest()[:32]
    assert rows["text_key"].n_unique() == 3
    assert x[0].tobytes() == x[2].tobytes() != x[1].tobytes()
    assert told == {
        "kind": "hashing",
        "made_from": "",
        "dimension": 16,
        "num_ads": 4,
        "num_texts": 3,
        "num_new": 3,
        "num_zero": 0,
    }


def test_lsa_embeds_a_world_whatever_the_order_of_its_ads(run):
    _, x, _ = run(LSA, MONDAY, "monday")
    assert x["a"] @ x["c"] > x["a"] @ x["b"]
    _, turned, _ = run(LSA, dict(reversed(MONDAY.items())), "turned")
    assert all(x[ad].tobytes() == turned[ad].tobytes() for ad in MONDAY)


@pytest.mark.parametrize("kind", ["lsa", "hashing", "transformer"])
def test_old_vectors_are_byte_equal_the_next_day_and_new_ones_come_from_what_was_fitted(run, kind, bert_config):
    config = {"lsa": LSA, "hashing": HASHING, "transformer": bert_config}[kind]
    monday, old, _ = run(config, MONDAY, "monday")
    tuesday, new, told = run(config, TUESDAY, "tuesday", monday)
    assert list(new) == list(TUESDAY)
    assert all(new[ad].tobytes() == old[ad].tobytes() for ad in ("b", "c"))
    assert new["e"].tobytes() == new["f"].tobytes()
    assert (told["num_texts"], told["num_new"]) == (4, 2)
    assert told["num_zero"] == (1 if kind == "lsa" else 0)  # "unheard of" has no term that Monday knew
    if kind == "lsa":
        assert not new["g"].any()
        for name in ("lsa.json", "lsa.safetensors"):
            assert (tuesday / name).read_bytes() == (monday / name).read_bytes()
    # On Wednesday an ad of Monday is back: Tuesday forgot its vector, but not how to make it.
    _, back, _ = run(config, {"a": "red tea"}, "wednesday", tuesday)
    np.testing.assert_allclose(back["a"], old["a"], atol=1e-6)


def test_a_day_without_new_texts_embeds_nothing(run, monkeypatch, bert_config):
    for name, config in (("lsa", LSA), ("hashing", HASHING), ("bert", bert_config)):
        monday, old, _ = run(config, MONDAY, f"{name}_monday")
        with monkeypatch.context() as closed:
            closed.setattr("leadre.embedding.transformer.transformer_encoder", None)
            _, new, told = run(config, {"z": "blue car"}, f"{name}_tuesday", monday)
        assert told["num_new"] == 0
        assert new["z"].tobytes() == old["b"].tobytes()


def test_an_earlier_result_of_another_encoder_is_refused(run):
    monday, _, _ = run(HASHING, MONDAY, "monday")
    with pytest.raises(
        ValueError, match=r"was made by embedding.kind='hashing', but now it is 'lsa'.*keep the encoder"
    ):
        run(LSA, TUESDAY, "lsa", monday)
    with pytest.raises(ValueError, match=r"vectors of widths \[8, 16\] stand side by side"):
        run(replace(HASHING, dimension=8), TUESDAY, "narrow", monday)


def test_an_earlier_result_of_other_weights_is_refused(run, bert_config, bert_folder):
    monday, _, _ = run(bert_config, MONDAY, "monday")
    told = json.loads((monday / "embedding.json").read_text())
    (monday / "embedding.json").write_text(json.dumps(told | {"made_from": "org/bert@1"}))
    with pytest.raises(
        ValueError, match=r"was made by other weights \(org/bert@1, now [0-9a-f]{64}\).*keep the weights"
    ):
        run(bert_config, TUESDAY, "tuesday", monday)


def test_a_world_without_ads_is_an_error(run):
    with pytest.raises(ValueError, match=r"ads.parquet has no ads"):
        run(HASHING, [], "empty")


def test_a_world_of_one_ad_has_one_vector(run):
    assert run(LSA, ["red car"], "lsa")[1]["ad0"].shape == (3,)
    assert run(HASHING, ["red car"], "hashing")[1]["ad0"].shape == (16,)


def test_a_vector_that_is_not_finite_is_an_error_that_names_its_text(run, monkeypatch):
    monkeypatch.setattr(stage, "hashing_vectors", lambda texts, dimension: np.full((len(texts), dimension), np.nan))
    with pytest.raises(ValueError, match=r"vectors of 1 texts are not finite, the first is that of 'tea'"):
        run(HASHING, ["tea"], "broken")


def test_every_shipped_embedding_is_valid(embedding_names, embedding_config):
    assert len(embedding_names) >= 16
    for name in embedding_names:
        embedding_config(name)


def test_only_clip_has_a_projection(bert_config):
    with pytest.raises(
        ValueError, match=r"pooling is 'projection', which CLIP alone has.*use embedding.tower=clip_text"
    ):
        replace(bert_config, pooling="projection")


def test_the_tables_say_what_is_written(run):
    out, _, _ = run(HASHING, MONDAY, "monday")
    assert pl.read_parquet(out / "rows.parquet").columns == ["ad_id", "text_key"]
    assert {path.name for path in out.iterdir()} == {"vectors.safetensors", "rows.parquet", "embedding.json"}
