"""Vectors that were made elsewhere."""

import json

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from leadre import tables
from leadre.embedding.config import VectorsConfig
from leadre.embedding.embed import embed
from leadre.embedding.fingerprint import fingerprint
from leadre.quantizer.config import ResidualKMeansConfig
from leadre.quantizer.quantize import quantize


@pytest.fixture
def run(tmp_path, make_world, compute):
    def run(ads, vectors, name="out", previous=None):
        out = tmp_path / name
        out.mkdir()
        frame = pl.DataFrame(vectors, schema=tables.VECTORS.schema, orient="row")
        tables.write(tables.VECTORS, frame, tmp_path / f"{name}.parquet")
        config = VectorsConfig(kind="vectors", path=str(tmp_path / f"{name}.parquet"))
        embed(config, make_world(ads, name=f"{name}_world"), previous, out=out, compute=compute)
        return out, load_file(out / "vectors.safetensors")["x"], json.loads((out / "embedding.json").read_text())

    return run


def test_each_ad_has_its_own_vector_as_it_is_and_unknown_ads_are_counted(run):
    vectors = [("b", [3.0, 4.0]), ("unknown", [9.0, float("nan")]), ("a", [0.5, -1.0])]
    out, x, told = run({"a": "same text", "b": "same text"}, vectors)
    assert x.tolist() == [[0.5, -1.0], [3.0, 4.0]]
    assert x.dtype == np.float32
    assert tables.read(tables.ROWS, out / "rows.parquet")["ad_id"].to_list() == ["a", "b"]
    assert (told["num_unknown"], told["num_changed"], told["num_new"], told["dimension"]) == (1, 0, 2, 2)


def test_what_is_coded_once_is_a_vector_and_not_a_text(run):
    vectors = [("a", [1.0, 0.0]), ("b", [0.0, 1.0]), ("c", [1.0, 0.0])]
    out, _, told = run({"a": "same text", "b": "same text", "c": "another"}, vectors)
    first, second, third = tables.read(tables.ROWS, out / "rows.parquet")["text_key"]
    assert first == third != second
    assert len(first) == 32
    assert told["num_texts"] == 2


def test_ads_of_one_text_keep_their_own_vectors_in_their_codes(run, tmp_path, compute, logger):
    corners = [[x, y] for x in (0.0, 8.0) for y in (0.0, 8.0)]
    embeddings, _, _ = run(dict.fromkeys("abcd", "one text"), list(zip("abcd", corners, strict=True)))
    config = ResidualKMeansConfig(
        kind="residual_kmeans", seed=0, levels=1, codebook_size=4, kmeans_sample=9, kmeans_iterations=9,
        spread_last_level=False, shuffled=False,
    )  # fmt: skip
    (tmp_path / "codes").mkdir()
    quantize(config, embeddings, out=tmp_path / "codes", compute=compute, logger=logger)
    assert tables.read(tables.CODES, tmp_path / "codes" / "codes.parquet")["codes"].n_unique() == 4


def test_all_that_does_not_fit_is_told_at_once(run):
    vectors = [("a", [1.0]), ("a", [2.0]), ("b", [1.0, 2.0]), ("d", [float("inf")]), ("e", [None])]
    with pytest.raises(ValueError, match=r"out.parquet does not fit the ads: ") as told:
        run(dict.fromkeys("abcdef", "text"), vectors)
    assert str(told.value).split("fit the ads: ")[1].split("; ") == [
        "2 ads have no vector, the first is 'c'",
        "1 ads stand twice or more, the first is 'a'",
        "vectors have the widths [1, 2], but must have one, of at least 1",
        "2 vectors are not finite, the first is that of 'd'",
    ]


def test_vectors_without_numbers_are_an_error(run):
    with pytest.raises(ValueError, match=r"vectors have the widths \[0\], but must have one, of at least 1"):
        run({"a": "text"}, [("a", [])])


@pytest.mark.parametrize("dtype", [pl.List(pl.Float64), pl.Array(pl.Float32, 2), pl.Array(pl.Float64, 2)])
def test_vectors_as_other_programs_write_them_are_taken(run, tmp_path, make_world, compute, dtype):
    path = tmp_path / "given.parquet"
    pl.DataFrame({"ad_id": ["a"], "vector": [[0.1, 2.0]]}, schema_overrides={"vector": dtype}).write_parquet(path)
    config = VectorsConfig(kind="vectors", path=str(path))
    embed(config, make_world({"a": "text"}), out=tmp_path, compute=compute)
    x = load_file(tmp_path / "vectors.safetensors")["x"]
    np.testing.assert_array_equal(x, np.float32([[0.1, 2.0]]))


def test_a_file_that_is_no_parquet_is_an_error(tmp_path, make_world, compute):
    path = tmp_path / "vectors.csv"
    path.write_text("ad_id,vector")
    config = VectorsConfig(kind="vectors", path=str(path))
    with pytest.raises(ValueError, match=r"embedding.path .*vectors.csv cannot be read as Parquet \(.*\): write it as"):
        embed(config, make_world({"a": "text"}), out=tmp_path, compute=compute)


def test_a_file_with_other_columns_is_an_error(run, tmp_path, make_world, compute):
    path = tmp_path / "other.parquet"
    pl.DataFrame({"ad_id": ["a"], "embedding": [[1.0]]}).write_parquet(path)
    config = VectorsConfig(kind="vectors", path=str(path))
    with pytest.raises(tables.TableError, match=r"column 'vector' is missing; column 'embedding' is not declared"):
        embed(config, make_world({"a": "text"}), out=tmp_path, compute=compute)


def test_the_next_day_brings_new_ads_alone_and_moves_no_old_vector(run, caplog):
    monday, _, _ = run({"a": "x", "b": "y"}, [("a", [1.0, 2.0]), ("b", [3.0, 4.0])], "monday")
    _, x, told = run({"c": "z", "a": "x"}, [("c", [5.0, 6.0]), ("b", [0.0, 0.0])], "tuesday", monday)
    assert x.tolist() == [[5.0, 6.0], [1.0, 2.0]]
    assert (told["num_new"], told["num_unknown"], told["num_changed"]) == (1, 1, 0)
    with pytest.raises(ValueError, match=r"vectors of widths \[1, 2\] stand side by side"):
        run({"c": "z", "a": "x"}, [("c", [5.0])], "narrow", monday)
    _, same, _ = run({"a": "x"}, [], "wednesday", monday)
    assert same.tolist() == [[1.0, 2.0]]
    assert not caplog.records
    out, kept, told = run({"b": "y", "a": "x"}, [("a", [1.0, 2.5]), ("b", [3.0, 4.0])], "thursday", monday)
    assert kept.tolist() == [[3.0, 4.0], [1.0, 2.0]]
    assert told["num_changed"] == 1
    assert "has other vectors of 1 ads than before: they keep the old ones" in caplog.text
    then, now = (dict(tables.read(tables.ROWS, folder / "rows.parquet").iter_rows()) for folder in (monday, out))
    assert now == {ad: then[ad] for ad in "ba"}


def test_the_fingerprint_tells_a_changed_file_and_a_missing_one(tmp_path):
    path = tmp_path / "vectors.parquet"
    config = VectorsConfig(kind="vectors", path=str(path))
    with pytest.raises(ValueError, match=r"vectors.parquet', but there is no such file: give a Parquet file"):
        fingerprint(config)
    prints = set()
    for number in (1.0, 2.0):
        frame = pl.DataFrame({"ad_id": ["a"], "vector": [[number]]}, schema=tables.VECTORS.schema)
        tables.write(tables.VECTORS, frame, path)
        prints.add(fingerprint(config))
    assert len(prints) == 2
