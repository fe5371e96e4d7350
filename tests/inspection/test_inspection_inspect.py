"""The verb on small folders made by hand, and on those that the stages before it write."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import save_file

from leadre import tables
from leadre.inspection.config import InspectionConfig
from leadre.inspection.energy import energy_left, reconstruction_error
from leadre.inspection.inspect import inspect
from leadre.quantizer.load import save
from leadre.quantizer.residual_kmeans import ResidualKMeans

CONFIG = InspectionConfig(seed=0, category="first", num_shuffles=2, num_pairs=200, num_samples=9, num_neighbors=2)
CODEBOOKS = torch.tensor([[[4.0, 0.0], [0.0, 4.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
CODES = [[0, 0], [0, 0], [0, 1], [1, 1], [1, 1], [1, 0]]
X = [[5.0, 0.0], [5.0, 0.0], [4.0, 1.5], [0.0, 5.0], [0.0, 5.5], [1.0, 4.0]]
TEXTS = ["car", "car", "van", "tea", "tea leaf", "tea cup"]
CATEGORIES = ["drive", "drive", "drive", "drink", "drink", None]


def write_index(root, *, network=True, ids=("a", "b", "c", "d", "e", "f")):
    """Six ads: a and b have one text, d and e collide, f has no category; c is retired. ``z`` ran yesterday."""
    folders = {name: root / name for name in ("world", "embeddings", "codes", "catalog")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    nothing = {"product_type": None, "second_category": None, "attributes": [], "spu": None}
    ads = [
        {"ad_id": ad, "name": text if ad != "f" else None, "first_category": category, "description": text}
        | nothing
        | {"start_time": None, "end_time": None}
        for ad, text, category in zip(ids, TEXTS, CATEGORIES, strict=True)
    ]
    tables.write(tables.ADS, frame(tables.ADS, ads), folders["world"] / "ads.parquet")
    rows = [{"ad_id": ad, "text_key": text} for ad, text in zip(ids, TEXTS, strict=True)]
    tables.write(tables.ROWS, frame(tables.ROWS, rows), folders["embeddings"] / "rows.parquet")
    save_file({"x": torch.tensor(X)}, folders["embeddings"] / "vectors.safetensors")
    coded = [{"ad_id": ad, "codes": codes} for ad, codes in zip("zfedcba", [[2, 2], *CODES[::-1]], strict=True)]
    tables.write(tables.CODES, frame(tables.CODES, coded), folders["codes"] / "codes.parquet")
    kind = "residual_kmeans" if network else "random"
    shape = {"kind": kind, "input_dim": 2, "codebook_sizes": [3, 3]}
    save(folders["codes"], shape, ResidualKMeans(CODEBOOKS) if network else None)
    sids = {"a": [0, 0, 0], "b": [0, 0, 1], "d": [1, 1, 0], "e": [1, 1, 1], "f": [1, 0, 0]}
    for name, listed in (("sids", sids), ("retired", {"c": [0, 1, 0], "z": [2, 2, 0]})):
        told = [{"ad_id": ad, "sid": sid, "name": "".join(map(str, sid))} for ad, sid in listed.items()]
        tables.write(tables.SIDS, frame(tables.SIDS, told), folders["catalog"] / f"{name}.parquet")
    (folders["catalog"] / "catalog.json").write_text('{"extra_codes": 3}')
    return folders


def frame(table, rows):
    return pl.DataFrame(rows, schema=table.schema)


def inspected(folders, out):
    out.mkdir()
    inspect(CONFIG, *folders.values(), out=out)
    return [json.loads((out / f"{name}.json").read_text()) for name in ("inspection", "neighbors")]


def test_the_numbers_of_six_ads_by_hand(tmp_path):
    found, _ = inspected(write_index(tmp_path), tmp_path / "out")
    assert (found["ads"], found["distinct_texts"], found["active"], found["retired"]) == (6, 5, 5, 2)
    assert found["before"]["ads"] == {
        "rate": pytest.approx(2 / 6),
        "colliding_share": pytest.approx(4 / 6),
        "largest_group": 2,
        "pair_rate": pytest.approx(2 / 15),
    }
    assert found["before"]["texts"]["rate"] == pytest.approx(1 / 5)
    assert [one["groups"] for one in found["before"]["sizes"]] == [2, 2]
    assert found["before"]["largest"] == [
        {"ads": 2, "texts": 1, "codes": [0, 0], "names": ["car"]},
        {"ads": 2, "texts": 2, "codes": [1, 1], "names": ["tea", "tea leaf"]},
    ]
    assert found["catalog"] == {"extra_codes": 3}
    first, second = found["levels"]
    assert (first["codes"], first["used"], first["dead"], first["counts"]) == (3, 2, 1, [3, 3, 0])
    assert first["perplexity"] == pytest.approx(2.0)
    most = math.log2(6) - 2 / 6  # of five texts one is that of two ads
    assert (first["bits"], first["bits_left"]) == pytest.approx((1.0, most))
    whole = math.log2(6) - 4 / 6
    assert (second["bits"], second["bits_left"]) == pytest.approx((whole - 1, most - 1))
    assert first["share"] + second["share"] == pytest.approx(1.0)
    assert found["bits"]["whole"] == pytest.approx(whole)
    assert found["bits"]["most"] == pytest.approx(most)


def test_what_the_codes_tell_of_the_category_counts_each_text_once_and_leaves_out_those_without_one(tmp_path):
    found = inspected(write_index(tmp_path), tmp_path / "out")[0]["category"]
    assert (found["column"], found["texts"], found["categories"]) == ("first_category", 4, 2)
    assert found["bits"] == pytest.approx(1.0)
    assert found["bits_by_level"] == pytest.approx([1.0, 0.0])
    assert found["bits_by_level_shuffled"][0] <= 1.0
    assert [length["same_category"] for length in found["purity"]] == [2 / 6, 1.0, 1.0]
    assert [length["pairs"] for length in found["purity"]] == [6, 2, 1]


def _with_codes(root, codes, copies):
    """Texts with the codes given, one of ten categories in turn, each text that of so many ads."""
    ads = [
        {"ad_id": f"{text}.{copy}", "first_category": f"c{text % 10}", "description": f"{text}", "attributes": []}
        for text in range(len(codes))
        for copy in range(copies)
    ]
    for name in ("world", "embeddings", "codes", "catalog"):
        (root / name).mkdir(parents=True)
    tables.write(tables.ADS, frame(tables.ADS, ads), root / "world" / "ads.parquet")
    keys = [{"ad_id": ad["ad_id"], "text_key": ad["description"]} for ad in ads]
    tables.write(tables.ROWS, frame(tables.ROWS, keys), root / "embeddings" / "rows.parquet")
    save_file({"x": torch.ones(len(ads), 2)}, root / "embeddings" / "vectors.safetensors")
    coded = [{"ad_id": ad["ad_id"], "codes": codes[int(ad["description"])]} for ad in ads]
    tables.write(tables.CODES, frame(tables.CODES, coded), root / "codes" / "codes.parquet")
    sizes = [max(level) + 1 for level in zip(*codes, strict=True)]
    save(root / "codes", {"kind": "random", "input_dim": 2, "codebook_sizes": sizes}, None)
    for name in ("sids", "retired"):
        tables.write(tables.SIDS, frame(tables.SIDS, []), root / "catalog" / f"{name}.parquet")
    (root / "catalog" / "catalog.json").write_text("{}")
    return {name: root / name for name in ("world", "embeddings", "codes", "catalog")}


@pytest.mark.parametrize("copies", [1, 5])
def test_codes_without_meaning_tell_of_the_category_what_chance_tells_however_many_ads_have_a_text(tmp_path, copies):
    codes = np.random.default_rng(0).integers(0, 6, size=(600, 3)).tolist()
    found = inspected(_with_codes(tmp_path, codes, copies), tmp_path / "out")[0]["category"]
    assert found["bits_by_level"] == pytest.approx(found["bits_by_level_shuffled"], rel=0.2, abs=0.04)
    *shorter, last = [length["same_category"] for length in found["purity"]]
    assert shorter == pytest.approx([0.1] * 3, abs=0.02)
    assert last < 0.2


def test_codes_that_are_the_category_tell_more_than_chance_and_the_level_after_them_no_less(tmp_path):
    drawn = np.random.default_rng(0).integers(0, 6, size=600).tolist()
    codes = [[text % 10, other] for text, other in enumerate(drawn)]
    found = inspected(_with_codes(tmp_path, codes, 5), tmp_path / "out")[0]["category"]
    assert found["bits_by_level"] == pytest.approx([math.log2(10), 0.0], abs=1e-9)
    assert found["bits_by_level_shuffled"][0] < 0.3
    assert found["bits_by_level_shuffled"][1] == pytest.approx(0.0, abs=1e-9)
    assert [length["same_category"] for length in found["purity"][1:]] == [1.0, 1.0]


def test_a_spilled_ad_stands_beside_those_it_shares_its_sid_with(tmp_path):
    """The codes of e are 1, 1, but its S-ID begins with 1, 0, as that of f does."""
    folders = write_index(tmp_path)
    path = folders["catalog"] / "sids.parquet"
    told = tables.read(tables.SIDS, path).rows_by_key("ad_id", named=True, unique=True)
    told = [{"ad_id": ad, **row} for ad, row in told.items()]
    for row in told:
        if row["ad_id"] == "e":
            row |= {"sid": [1, 0, 1], "name": "101"}
    tables.write(tables.SIDS, frame(tables.SIDS, told), path)
    found, samples = inspected(folders, tmp_path / "out")
    spilled = next(sample for sample in samples if sample["ad"]["ad_id"] == "e")
    assert [(other["ad_id"], other["sid"], other["shared"]) for other in spilled["prefix"]] == [
        ("f", "100", 2),
        ("d", "110", 1),
    ]
    by_length = found["cosine"]["by_shared_prefix"]
    x = np.array(X)
    cosine = x[4] @ x[5] / np.linalg.norm(x[4]) / np.linalg.norm(x[5])
    assert by_length[2]["mean"] == pytest.approx(cosine)  # of e and f, and not of d and e
    assert found["before"]["largest"][1]["names"] == ["tea", "tea leaf"]


def test_the_energy_and_the_error_are_those_of_the_network(tmp_path):
    found, _ = inspected(write_index(tmp_path), tmp_path / "out")
    x, codes = np.array(X), np.array(CODES)
    books = CODEBOOKS.numpy()
    after_one = x - books[0][codes[:, 0]]
    after_two = after_one - books[1][codes[:, 1]]
    left = [level["energy_left"] for level in found["levels"]]
    of_the_mean = ((x - x.mean(0)) ** 2).sum()
    assert left == pytest.approx(
        [(after_one**2).sum() / of_the_mean, (after_two**2).sum() / (after_one**2).sum()], rel=1e-5
    )
    assert found["reconstruction_error"] == pytest.approx((after_two**2).sum() / of_the_mean, rel=1e-5)
    assert left[0] * left[1] == pytest.approx(found["reconstruction_error"], rel=1e-5)


def test_codes_without_a_network_have_no_energy(tmp_path):
    found, _ = inspected(write_index(tmp_path, network=False), tmp_path / "out")
    assert found["kind"] == "random"
    assert [level["energy_left"] for level in found["levels"]] == [None, None]
    assert found["reconstruction_error"] is None


def test_ads_stand_beside_their_neighbors_one_a_text(tmp_path):
    _, samples = inspected(write_index(tmp_path), tmp_path / "out")
    assert len(samples) == 5
    by_id = {sample["ad"]["ad_id"]: sample for sample in samples}
    assert set(by_id) == set("acdef")
    for sample in samples:
        assert len(sample["nearest"]) == 2
        assert {other["ad_id"] for other in sample["nearest"]} <= set("acdef") - {sample["ad"]["ad_id"]}
        assert all(other["shared"] for other in sample["prefix"])
        cosines = [other["cosine"] for other in sample["nearest"]]
        assert cosines == sorted(cosines, reverse=True)
    everyone = {ad["ad_id"]: ad for sample in samples for ad in [sample["ad"], *sample["nearest"], *sample["prefix"]]}
    assert everyone["a"]["same_text"] == 2
    assert everyone["a"]["sid"] == "000"
    assert everyone["c"]["sid"] == "010", "a retired ad has its S-ID still"
    assert everyone["f"]["name"] == "f", "an ad without a name goes by its id"
    assert everyone["f"]["category"] is None


def test_the_same_index_is_told_byte_for_byte_alike(tmp_path):
    folders = write_index(tmp_path)
    inspected(folders, tmp_path / "one")
    inspected(folders, tmp_path / "two")
    for name in ("inspection.json", "neighbors.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_one_ad_is_an_index_with_nothing_beside_it(tmp_path):
    folders = write_index(tmp_path)
    for folder, name, table in (("world", "ads", tables.ADS), ("embeddings", "rows", tables.ROWS)):
        path = folders[folder] / f"{name}.parquet"
        tables.write(table, tables.read(table, path).head(1), path)
    save_file({"x": torch.tensor(X[:1])}, folders["embeddings"] / "vectors.safetensors")
    found, samples = inspected(folders, tmp_path / "out")
    assert found["bits"] == {"whole": 0.0, "most": 0.0, "evenness": None}
    assert found["reconstruction_error"] == 0.0
    assert found["levels"][0]["energy_left"] is None
    assert [length["pairs"] for length in found["cosine"]["by_shared_prefix"]] == [0, 0, 0]
    assert samples == [{"ad": samples[0]["ad"], "nearest": [], "prefix": []}]


def test_folders_that_do_not_belong_together_are_refused(tmp_path):
    folders = write_index(tmp_path)
    path = folders["codes"] / "codes.parquet"
    coded = tables.read(tables.CODES, path)
    tables.write(tables.CODES, coded.filter(pl.col("ad_id") != "c"), path)
    with pytest.raises(ValueError, match=r"lacks the codes of 1 ads \(one is 'c'\): quantize the embeddings of this"):
        inspected(folders, tmp_path / "out")
    path = folders["embeddings"] / "rows.parquet"
    tables.write(tables.ROWS, tables.read(tables.ROWS, path).reverse(), path)
    with pytest.raises(ValueError, match="have not the same ads in the same order: embed this same world"):
        inspected(folders, tmp_path / "out2")
    path = folders["world"] / "ads.parquet"
    tables.write(tables.ADS, tables.read(tables.ADS, path).clear(), path)
    with pytest.raises(ValueError, match="has no ads: there is nothing to inspect"):
        inspected(folders, tmp_path / "out3")


def test_codes_that_tell_everything_leave_no_energy():
    network, x = ResidualKMeans(CODEBOOKS), CODEBOOKS[0][:2]
    assert energy_left(network, x) == [0.0, None]
    assert reconstruction_error(network, x, torch.tensor([[0, 2], [1, 2]])) == 0.0


def test_the_levels_leave_over_what_a_rebuild_lacks_whatever_the_blocks(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    network, x = ResidualKMeans(torch.randn(3, 4, 5, generator=generator)), torch.randn(50, 5, generator=generator) + 3
    whole = energy_left(network, x)
    assert math.prod(whole) == pytest.approx(reconstruction_error(network, x, network.quantize(x).codes), rel=1e-5)
    monkeypatch.setattr("leadre.inspection.energy.BLOCK", 7)
    assert energy_left(network, x) == pytest.approx(whole, rel=1e-9)
    assert energy_left(network, x[:1].repeat(30, 1))[0] is None
