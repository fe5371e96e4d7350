"""The stage `codes` on a later day: old codes stand, new ads alone are coded."""

import json
import logging
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file

from leadre import tables
from leadre.quantizer.load import load

KINDS = {
    "rqvae": ("tiny", {}),
    "ema": ("tiny", {"codebook": "ema"}),
    "residual_kmeans": ("residual_kmeans", {"levels": 2, "codebook_size": 8, "spread_last_level": True}),
    "graded_kmeans": ("graded_kmeans", {"levels": 2, "codebook_size": 8}),
    "shuffled": ("tiny", {"shuffled": True}),
    "random": ("random", {}),
}
each_kind = pytest.mark.parametrize(("name", "changes"), KINDS.values(), ids=KINDS)


@each_kind
def test_old_rows_stand_first_and_unchanged_and_nothing_is_trained(
    tmp_path, run, configured, clusters, monkeypatch, name, changes
):
    """Yesterday ads 0..29; today 5..44, in another order: 0..4 are retired and keep their rows."""
    x, config = clusters(45), configured(name, **changes)
    before = run(tmp_path / "before", x[:30], config)
    monkeypatch.setattr("leadre.quantizer.quantize.learned", None)
    order = np.random.default_rng(0).permutation(np.arange(5, 45))
    today = run(tmp_path / "today", x[order], config, ad_ids=[f"ad{i}" for i in order], previous=before.out)
    assert today.ad_ids[:30] == before.ad_ids
    assert today.codes[:30].tolist() == before.codes.tolist()
    assert today.ad_ids[30:] == [f"ad{i}" for i in order if i >= 30]
    for file in ("quantizer.json", "quantizer.safetensors"):
        assert (before.out / file).exists() == (today.out / file).exists() == (name != "random" or file[-1] == "n")
        if (before.out / file).exists():
            assert (today.out / file).read_bytes() == (before.out / file).read_bytes()
    assert (today.report["num_ads"], today.report["new"]["num_ads"], today.report["new"]["num_texts"]) == (40, 15, 15)
    assert today.report["num_ever"] == 45
    assert today.report["variance"] == before.report["variance"]
    assert today.report["reconstruction_error"] == before.report["reconstruction_error"]


def test_new_ads_get_the_nearest_codes_of_the_stored_network(tmp_path, run, configured, clusters):
    x, config = clusters(45), configured("tiny", spread_last_level=False)
    before = run(tmp_path / "before", x[:30], config)
    today = run(tmp_path / "today", x, config, previous=before.out)
    network = load(before.out)
    assert today.codes.tolist() == network.quantize(torch.from_numpy(x)).codes.tolist()
    rebuilt = network.decode(torch.from_numpy(today.codes[30:])).numpy()
    error = ((x[30:] - rebuilt) ** 2).sum(-1).mean() / ((x[:30] - x[:30].mean(0)) ** 2).sum(-1).mean()
    assert today.report["new"]["reconstruction_error"] == pytest.approx(error, rel=1e-4)


@each_kind
def test_day_after_day_is_as_two_days_where_nothing_is_spread(tmp_path, ran, run, configured, clusters, name, changes):
    if changes.get("shuffled"):
        pytest.skip("new texts are handed around among those of their day")
    if name != "random":
        changes = {**changes, "spread_last_level": False}
    x, config = clusters(24), configured(name, **changes)
    first = ran(name, 12, **changes)
    second = run(tmp_path / "2", x[:18], config, previous=first.out)
    third = run(tmp_path / "3", x, config, previous=second.out)
    at_once = run(tmp_path / "at once", x, config, previous=first.out)
    assert third.codes.tolist() == at_once.codes.tolist()
    assert third.ad_ids == at_once.ad_ids


@each_kind
def test_a_day_without_new_ads_changes_nothing(tmp_path, ran, run, configured, clusters, name, changes):
    x, config = clusters(12), configured(name, **changes)
    before = ran(name, 12, **changes)
    today = run(tmp_path / "today", x[3:5], config, ad_ids=["ad3", "ad4"], previous=before.out)
    assert (today.out / "codes.parquet").read_bytes() == (before.out / "codes.parquet").read_bytes()
    assert (today.out / "rows.parquet").read_bytes() == (before.out / "rows.parquet").read_bytes()
    assert today.report["new"] == {"num_ads": 0, "num_texts": 0, "reconstruction_error": None, "drift": None}
    assert [sum(level) for level in today.report["counts"]] == [2] * before.codes.shape[1]


@each_kind
def test_a_new_ad_with_a_known_text_gets_its_codes_also_of_a_retired_ad(
    tmp_path, ran, run, configured, clusters, name, changes
):
    x, config = clusters(12), configured(name, **changes)
    before = ran(name, 12, **changes)  # the text of an ad is its id
    today = run(
        tmp_path / "today", x[[3, 7]], config, ad_ids=["new", "other"], texts=["ad3", "ad7"], previous=before.out
    )
    assert today.ad_ids[12:] == ["new", "other"]
    assert today.codes[12:].tolist() == before.codes[[3, 7]].tolist()
    assert (today.report["new"]["num_ads"], today.report["new"]["num_texts"]) == (2, 0)


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
def test_a_new_text_at_the_place_of_an_old_one_takes_a_free_last_code(tmp_path, ran, run, configured, clusters, name):
    x, changes = clusters(12), {"levels": 2, "codebook_size": 8, "spread_last_level": True}
    config = configured(name, **changes)
    before = ran(name, 12, **changes)
    again = np.concatenate([x, x[:3]])
    today = run(tmp_path / "today", again, config, previous=before.out)
    assert today.codes[12:, 0].tolist() == before.codes[:3, 0].tolist()
    assert len(np.unique(today.codes, axis=0)) == 15
    plain = run(tmp_path / "plain", again, replace(config, spread_last_level=False), previous=before.out)
    assert len(np.unique(plain.codes, axis=0)) < 15


def test_an_ad_whose_text_changed_keeps_its_codes_and_says_so(tmp_path, ran, run, configured, clusters, caplog):
    x, config = clusters(12), configured("tiny")
    before = ran("tiny", 12)  # the text of an ad is its id
    texts = ["other", *(f"ad{i}" for i in range(1, 12)), "ad0"]  # and a new ad has the old text of ad0
    today = run(tmp_path / "today", np.concatenate([x[::-1], x[:1]]), config, texts=texts, previous=before.out)
    assert today.codes[:12].tolist() == before.codes.tolist()
    assert today.codes[12].tolist() == before.codes[0].tolist()
    assert "1 ads have another text than when they were coded and keep their codes (one is 'ad0')" in caplog.text


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
def test_new_texts_unlike_the_known_ones_are_told_and_those_held_out_at_random_are_not(
    tmp_path, run, configured, clusters, caplog, name
):
    """So many codes fit what they were trained on: the error on texts held out is higher, and yet nothing drifts."""
    x, config = clusters(800), configured(name, levels=2, codebook_size=128, spread_last_level=False)
    before = run(tmp_path / "before", x[:600], config)
    like = run(tmp_path / "like", x, config, previous=before.out)
    if name == "residual_kmeans":
        assert like.report["new"]["reconstruction_error"] > 1.5 * before.report["reconstruction_error"]
    assert 0.8 < like.report["new"]["drift"] < 1.25
    assert "index anew" not in caplog.text
    other = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32)
    unlike = run(tmp_path / "unlike", np.concatenate([x[:600], other]), config, previous=before.out)
    assert unlike.report["new"]["drift"] > 5
    assert "the 40 new texts are" in caplog.text
    assert "times farther from the nearest known one than known texts are from one another" in caplog.text
    assert "when this lasts, index anew" in caplog.text


def test_collisions_are_told_of_todays_ads_and_not_of_those_that_left(tmp_path, run, configured, clusters, caplog):
    """Yesterday all ads had one text, today one of them is left, and another came."""
    caplog.set_level(logging.INFO)
    x, config = clusters(6), configured("tiny")
    before = run(tmp_path / "before", x[:5], config, texts=["same"] * 5)
    assert before.report["collision_rate"] == 0.8
    today = run(tmp_path / "today", x[4:], config, ad_ids=["ad4", "ad5"], texts=["same", "other"], previous=before.out)
    assert (today.report["num_ads"], today.report["num_distinct"], today.report["num_ever"]) == (2, 2, 6)
    assert (today.report["collision_rate"], today.report["largest_group"]) == (0.0, 1)
    assert "2 ads, 2 distinct texts; before the extra code 0.00 % collide" in caplog.text


def test_yesterdays_embeddings_are_not_looked_at(tmp_path, ran, run, configured, clusters):
    """Old vectors that are not finite would be refused on the first day."""
    x, config = clusters(14), configured("tiny")
    before = ran("tiny", 12)
    x[:12] = np.nan
    today = run(tmp_path / "today", x, config, previous=before.out)
    assert today.codes[:12].tolist() == before.codes.tolist()
    x[13] = np.inf
    with pytest.raises(ValueError, match="embeddings of 1 ads are not finite, the first is ad 'ad13'"):
        run(tmp_path / "broken", x, config, previous=before.out)


def test_a_first_day_of_equal_embeddings_has_no_error_to_measure_drift_by(tmp_path, run, configured):
    x, config = np.zeros((4, 4), np.float32), configured("tiny")
    before = run(tmp_path / "before", x[:3], config)
    today = run(tmp_path / "today", x, config, previous=before.out)
    assert len(np.unique(today.codes, axis=0)) == 4
    assert (today.report["new"]["reconstruction_error"], today.report["new"]["drift"]) == (None, None)


def test_what_does_not_fit_the_stored_quantizer_is_refused(tmp_path, ran, run, configured, clusters):
    config = configured("tiny")
    before = ran("tiny", 12)
    told = r"quantizer.json: input_dim is 6, but today's is 5: .* or leave out previous_catalog"
    with pytest.raises(ValueError, match=told):
        run(tmp_path / "width", clusters(13, dim=5), config, previous=before.out)
    with pytest.raises(ValueError, match=r"quantizer.json: kind is 'rqvae', but today's is 'residual_kmeans'"):
        run(tmp_path / "kind", clusters(13), configured("residual_kmeans"), previous=before.out)
    drawn = ran("random", 12, levels=2, codebook_size=4)
    with pytest.raises(ValueError, match=r"codebook_sizes is \[4, 4\], but today's is \[4, 4, 4\]"):
        run(tmp_path / "more", clusters(13), configured("random", levels=3, codebook_size=4), previous=drawn.out)


def test_a_previous_folder_that_is_broken_is_refused(tmp_path, ran, run, configured, clusters):
    config = configured("tiny")
    before = ran("tiny", 12)

    def broken(name):
        folder = tmp_path / name
        shutil.copytree(before.out, folder)
        return folder

    rows = broken("rows")
    table = tables.read(tables.ROWS, rows / "rows.parquet")
    tables.write(tables.ROWS, table[:-1], rows / "rows.parquet")
    with pytest.raises(ValueError, match=r"codes.parquet and rows.parquet do not hold the same ads: quantize anew"):
        run(tmp_path / "a", clusters(13), config, previous=rows)
    tensors = broken("tensors")
    stored = load_file(tensors / "quantizer.safetensors")
    stored["codebooks"] = stored["codebooks"][:, :, :3].contiguous()
    save_file(stored, tensors / "quantizer.safetensors")
    with pytest.raises(ValueError, match=r"codebooks has the shape \[2, 8, 3\], expected \[2, 8, 4\]"):
        run(tmp_path / "b", clusters(13), config, previous=tensors)
    shape = broken("shape")
    (shape / "quantizer.json").unlink()
    for file in ("codes.parquet", "rows.parquet"):  # an earlier version had neither
        with pytest.raises(ValueError, match=r"quantizer.json is not there: .* quantize anew"):
            run(tmp_path / "c", clusters(13), config, previous=shape)
        (shape / file).unlink()


def test_codes_and_texts_are_declared_tables(tmp_path, run, configured, clusters, caplog):
    caplog.set_level(logging.INFO)
    out = run(tmp_path, clusters(5), configured("tiny")).out
    assert pl.read_parquet(out / "codes.parquet").schema == tables.CODES.schema
    assert pl.read_parquet(out / "rows.parquet").schema == tables.ROWS.schema
    assert "5 ads, 5 distinct texts; before the extra code 0.00 % collide" in caplog.text
    assert json.loads((out / "quantizer.json").read_text())["input_dim"] == 6
