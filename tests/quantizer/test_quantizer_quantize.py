"""The stage `codes` on its first day: training, resuming, edges, and what it writes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from safetensors.numpy import load_file, save_file

from leadre import tables
from leadre.quantizer.diagnostics import relative_error
from leadre.quantizer.kmeans import residual_kmeans
from leadre.quantizer.learn import started_rqvae
from leadre.quantizer.load import load
from leadre.quantizer.quantize import quantize
from leadre.quantizer.residual import quantize_residuals
from leadre.quantizer.residual_kmeans import ResidualKMeans
from leadre.quantizer.rqvae import RQVAE
from leadre.quantizer.rqvae_module import RQVAEModule

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = {
    "plain": {},
    "ema": {"codebook": "ema", "ema_decay": 0.9},
    "sinkhorn": {"sinkhorn_epsilon": 0.01},
    "balanced everywhere": {"sinkhorn_epsilon": 0.01, "sinkhorn_levels": "all"},
    "rotation": {"rotation": True},
    "all": {"codebook": "ema", "ema_decay": 0.9, "sinkhorn_epsilon": 0.01, "rotation": True},
}
each_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def test_the_diagnostics_tell_what_the_codes_are(tmp_path, run, configured, clusters):
    x = clusters(43)
    x[40:] = x[:3]  # the first three texts again
    texts = [i % 40 for i in range(43)]
    _, ad_ids, codes, report = run(tmp_path, x, configured("tiny", spread_last_level=False), texts=texts)
    assert ad_ids == [f"ad{i}" for i in range(43)]
    assert codes.shape == (43, 2)
    assert codes[40:].tolist() == codes[:3].tolist()
    distinct = len(np.unique(codes, axis=0))
    assert report["collision_rate"] == pytest.approx(1 - distinct / 43)
    assert report["collision_rate_distinct"] == pytest.approx(1 - distinct / 40) == report["collision_rate_nearest"]
    assert (report["num_ads"], report["num_distinct"], report["codebook_sizes"]) == (43, 40, [8, 8])
    assert report["counts"] == [np.bincount(level, minlength=8).tolist() for level in codes.T]
    assert report["dead_codes"] == [level.count(0) for level in report["counts"]]
    assert report["usage"] == [pytest.approx(1 - dead / 8) for dead in report["dead_codes"]]
    assert sum(report["bits"]) <= np.log2(43)
    assert len(report["usage"]) == len(report["perplexity"]) == len(report["bits"]) == 2
    assert report["new"] is None


@pytest.mark.parametrize(
    ("name", "options"),
    [*(("tiny", options) for options in OPTIONS.values()), ("residual_kmeans", {"levels": 2, "codebook_size": 8})],
    ids=[*OPTIONS, "residual_kmeans"],
)
def test_the_stored_quantizer_gives_the_stored_codes(ran, clusters, name, options):
    x = clusters()
    out, _, codes, report = ran(name, spread_last_level=False, **options)
    network = load(out)
    assert network.codebook_sizes == [8, 8] == json.loads((out / "quantizer.json").read_text())["codebook_sizes"]
    assert network.quantize(torch.from_numpy(x)).codes.tolist() == codes.tolist()
    rebuilt = network.decode(torch.from_numpy(codes)).numpy()
    relative = ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report["reconstruction_error"] == pytest.approx(relative, rel=1e-4)
    assert report["variance"] == pytest.approx(((x - x.mean(0)) ** 2).sum() / len(x), rel=1e-5)


@pytest.mark.parametrize("options", [OPTIONS["plain"], OPTIONS["ema"], OPTIONS["all"]], ids=["plain", "ema", "all"])
def test_training_rebuilds_embeddings_and_tells_clusters_apart(tmp_path, run, configured, clusters, options):
    config = configured("tiny", codebook_size=16, steps=200, batch_size=40, restart_every_steps=20, **options)
    _, _, codes, report = run(tmp_path, clusters(), config)
    assert report["reconstruction_error"] < 0.1
    holders = [np.bincount(np.arange(40)[codes[:, 0] == code] % 8) for code in np.unique(codes[:, 0])]
    assert sum(clusters.max() for clusters in holders) > 0.9 * 40  # ads of one first code are of one cluster
    assert report["collision_rate_distinct"] == 0.0


def test_ads_that_share_their_nearest_codes_are_spread_only_when_asked(ran):
    _, _, kept, plain = ran("tiny", spread_last_level=False)
    _, _, spread, report = ran("tiny", spread_last_level=True)
    assert kept[:, 0].tolist() == spread[:, 0].tolist()
    assert plain["collision_rate_distinct"] == report["collision_rate_nearest"] > report["collision_rate_distinct"]


def test_texts_with_one_vector_are_told_apart_and_ads_with_one_text_are_not(tmp_path, run, configured, clusters):
    x = clusters(12)
    x[8:] = x[0]
    _, _, codes, report = run(tmp_path, x, configured("tiny"), texts=[*range(8), 8, 9, 0, 0])
    assert codes[10].tolist() == codes[11].tolist() == codes[0].tolist()
    assert len({tuple(row) for row in codes[[0, 8, 9]].tolist()}) == 3
    assert (report["num_distinct"], report["collision_rate_distinct"]) == (10, 0.0)


def test_the_seed_tells_everything(tmp_path, run, configured, clusters):
    same = [run(tmp_path / str(i), clusters(), configured("tiny", seed=3)) for i in range(2)]
    other = run(tmp_path / "other", clusters(), configured("tiny", seed=4))
    assert same[0].codes.tolist() == same[1].codes.tolist() != other.codes.tolist()
    weights = [(ran.out / "quantizer.safetensors").read_bytes() for ran in same]
    assert weights[0] == weights[1]


@each_option
def test_each_option_changes_the_training_and_only_when_it_is_set(ran, options):
    off = {"codebook": "gradient", "ema_decay": 0.5, "sinkhorn_iterations": 3, "sinkhorn_levels": "all"}
    plain, changed = (ran("tiny", spread_last_level=False, **changes) for changes in ({}, options or off))
    weights = [(one.out / "quantizer.safetensors").read_bytes() for one in (plain, changed)]
    assert (weights[0] != weights[1]) == bool(options)


@each_option
def test_a_training_killed_twice_goes_on_to_the_same_codes(tmp_path, run, configured, clusters, monkeypatch, options):
    x, config = clusters(20), configured("tiny", codebook_size=16, **options)  # codes go unused: there are restarts
    whole = run(tmp_path / "whole", x, config)
    step, deaths, begun = RQVAEModule.training_step, [5, 9], []

    def dying(self, batch):
        begun.append(self.global_step)
        if self.global_step in deaths:
            deaths.remove(self.global_step)
            raise RuntimeError("killed")
        return step(self, batch)

    monkeypatch.setattr(RQVAEModule, "training_step", dying)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "killed", x, config, checkpoint_every_steps=3)
    resumed = run(tmp_path / "killed", x, config, checkpoint_every_steps=3)
    assert begun == [*range(6), *range(3, 10), *range(9, 20)]
    assert resumed.codes.tolist() == whole.codes.tolist()
    for name in ("quantizer.safetensors", "metrics.csv", "diagnostics.json"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_metrics_tell_losses_usage_perplexity_and_collisions(ran):
    out = ran("tiny", spread_last_level=False).out
    header = (out / "metrics.csv").read_text().splitlines()[0].split(",")
    codebooks = {f"{figure}_{level}" for figure in ("usage", "perplexity") for level in (1, 2)}
    train = {"reconstruction_loss", "quantization_loss", "collision_rate", *codebooks}
    assert {f"train/{name}" for name in train} <= set(header)
    assert {f"valid/{name}" for name in train - {"quantization_loss"}} <= set(header)


def test_a_start_by_kmeans_codes_better_than_one_drawn_at_random(configured, clusters):
    x = torch.from_numpy(clusters(200))
    network = started_rqvae(configured("tiny"), x)
    latents = network.latents(x)

    def error(codebooks):
        return float((latents - quantize_residuals(latents, codebooks).codewords.sum(0)).square().mean())

    drawn = latents.std() * torch.randn(network.codebooks.shape, generator=torch.Generator().manual_seed(0))
    assert error(network.codebooks.detach()) < 0.3 * error(drawn)


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_a_code_that_goes_unused_is_moved_to_where_ads_are(tmp_path, run, configured, clusters, monkeypatch, codebook):
    """All codes of both levels but one start far away; without restarts they stay unused."""

    def far_away(config, x):
        network = started_rqvae(config, x)
        network.codebooks.data[:, 1:] = 1e3
        return network

    monkeypatch.setattr("leadre.quantizer.learn.started_rqvae", far_away)
    config = configured("tiny", spread_last_level=False, codebook=codebook)
    left = run(tmp_path / "left", clusters(), replace(config, restart_every_steps=1000)).report
    moved = run(tmp_path / "moved", clusters(), config).report
    assert left["dead_codes"] == [7, 7]
    assert max(moved["dead_codes"]) <= 2


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
@pytest.mark.parametrize("x", ["one", "three", "equal vectors"])
def test_fewer_ads_than_codes_and_equal_embeddings_are_coded(tmp_path, run, configured, clusters, x, name):
    x = {"one": clusters(1), "three": clusters(3), "equal vectors": np.full((5, 4), 0.1, np.float32)}[x]
    _, _, codes, report = run(tmp_path, x, configured(name, levels=2, codebook_size=8, spread_last_level=True))
    assert np.isfinite([report["reconstruction_error"], *report["perplexity"], *report["bits"]]).all()
    assert len(np.unique(codes, axis=0)) == len(x)
    assert report["collision_rate_distinct"] == 0.0


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
def test_many_equal_embeddings_have_no_scale_though_their_mean_in_float32_is_another(tmp_path, run, configured, name):
    x = torch.full((3000, 4), 0.1)
    assert (x - x.mean(0)).any()
    ran = run(tmp_path, x.numpy(), configured(name, levels=2, codebook_size=8), texts=["same", *["other"] * 2999])
    assert (ran.report["variance"], ran.report["reconstruction_error"]) == (0.0, 0.0)
    if name == "tiny":
        network = started_rqvae(configured(name), x)
        assert (network.scale, network.mean.tolist()) == (1, x[0].tolist())


@pytest.mark.parametrize("size", [1e-30, 1e-22, 1.0, 1e17])
def test_embeddings_of_any_size_are_brought_to_one_scale(configured, clusters, size):
    x = torch.from_numpy(clusters(200))
    network = started_rqvae(configured("tiny"), x * size)
    assert float(network.scale) == pytest.approx(float((x - x.mean(0)).square().mean().sqrt()) * size, rel=1e-4)
    assert network.codebooks.isfinite().all()


def test_kmeans_starts_from_the_rows_that_were_drawn_before_anything_is_encoded(configured, clusters, monkeypatch):
    x, config, encoded = torch.from_numpy(clusters(200)), configured("tiny", kmeans_sample=50), []
    latents = RQVAE.latents

    def counted(self, x):
        encoded.append(len(x))
        return latents(self, x)

    monkeypatch.setattr(RQVAE, "latents", counted)
    network = started_rqvae(config, x)
    assert sum(encoded) == 50
    generator = torch.Generator().manual_seed(config.seed)
    sample = network.latents(x)[torch.randperm(200, generator=generator)[:50]]
    expected = residual_kmeans(sample, levels=2, codebook_size=8, iterations=20, generator=generator)
    assert torch.equal(network.codebooks.detach(), expected)


def test_no_more_than_a_block_is_rebuilt_at_once_and_no_level_but_the_last_is_kept(
    tmp_path, run, configured, clusters, monkeypatch
):
    """Blocks of 16 ads: what is kept of a block has storage for itself alone, not for all levels."""
    monkeypatch.setattr("leadre.quantizer.diagnostics.BLOCK", 16)
    whole, decode, sizes, kept = torch.cat, ResidualKMeans.decode, [], []

    def decoded(self, codes):
        sizes.append(len(codes))
        return decode(self, codes)

    def concatenated(tensors, *rest):
        kept.extend(part.untyped_storage().nbytes() / part.nbytes for part in tensors if part.ndim == 2 and part.nbytes)
        return whole(tensors, *rest)

    monkeypatch.setattr(ResidualKMeans, "decode", decoded)
    monkeypatch.setattr("leadre.quantizer.quantize.torch.cat", concatenated)
    x = clusters()
    ran = run(tmp_path, x, configured("residual_kmeans", levels=3, codebook_size=8, spread_last_level=True))
    monkeypatch.undo()
    assert sizes == [16, 16, 8]
    assert max(kept) < 1.5
    rebuilt = load(ran.out).decode(torch.from_numpy(ran.codes))
    assert ran.report["reconstruction_error"] == pytest.approx(relative_error(torch.from_numpy(x), rebuilt))


@each_option
def test_options_bear_equal_embeddings_and_a_single_ad(tmp_path, run, configured, options):
    for name, rows in (("equal", 5), ("one", 1)):
        x = np.zeros((rows, 4), np.float32)
        _, _, codes, report = run(tmp_path / name, x, configured("tiny", steps=10, **options))
        assert len(np.unique(codes, axis=0)) == rows
        assert np.isfinite(report["reconstruction_error"])


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans", "random"])
def test_ads_of_one_text_share_their_codes(tmp_path, run, configured, name):
    x = np.full((6, 4), 0.5, np.float32)
    _, _, codes, report = run(tmp_path, x, configured(name, levels=2, codebook_size=8), texts=["same"] * 6)
    assert len(np.unique(codes, axis=0)) == 1
    assert (report["num_distinct"], report["largest_group"], report["collision_rate_distinct"]) == (1, 6, 0.0)
    assert report["collision_rate"] == pytest.approx(5 / 6)


def test_residual_kmeans_is_a_kind_of_its_own(tmp_path, run, configured, clusters):
    x = clusters(200)
    config = configured("residual_kmeans", levels=2, codebook_size=8)
    out, _, codes, report = run(tmp_path, x, config)
    codebooks = load_file(out / "quantizer.safetensors")["codebooks"]
    assert quantize_residuals(torch.from_numpy(x), torch.from_numpy(codebooks)).codes.tolist() == codes.tolist()
    assert report["reconstruction_error"] < 0.05
    assert report["kind"] == "residual_kmeans"


def test_embeddings_that_are_not_finite_are_an_error_that_names_the_ad(tmp_path, run, configured, clusters):
    x = clusters()
    x[5, 2], x[9, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"embeddings of 2 ads are not finite, the first is ad 'ad5'"):
        run(tmp_path, x, configured("tiny"))
    x = clusters()
    x[7, 1] = 2e19
    with pytest.raises(ValueError, match=r"of 1 ads are not finite, the first is ad 'ad7', or as large as 1e19"):
        run(tmp_path, x, configured("residual_kmeans"))


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans", "random", "letter"])
def test_no_ads_are_an_error(tmp_path, run, configured, name):
    with pytest.raises(ValueError, match="has no ad: the quantizer needs at least one"):
        run(tmp_path, np.zeros((0, 4), np.float32), configured(name))


@pytest.mark.parametrize(
    ("tensors", "ad_ids", "told"),
    [
        ({"x": np.zeros((2, 4), np.float32)}, ["a"], "has 2 vectors but 1 rows: make the embeddings anew"),
        ({"x": np.zeros((2, 4), np.float32)}, ["a", "a"], "has the ad 'a' more than once"),
        ({"y": np.zeros((1, 4), np.float32)}, ["a"], r"holds {'y': '\[1, 4\] torch.float32'}, expected x of \(N, D\)"),
        ({"x": np.zeros(1, np.float32)}, ["a"], r"holds {'x': '\[1\] torch.float32'}, expected x of \(N, D\)"),
        ({"x": np.zeros((1, 4))}, ["a"], r"holds {'x': '\[1, 4\] torch.float64'}, expected x of \(N, D\) float32"),
        ({"x": np.zeros((1, 0), np.float32)}, ["a"], "D >= 1"),
    ],
)
def test_embeddings_that_do_not_fit_their_ads_are_an_error(
    tmp_path, configured, compute, logger, tensors, ad_ids, told
):
    save_file(tensors, tmp_path / "vectors.safetensors")
    rows = pl.DataFrame({"ad_id": ad_ids, "text_key": ad_ids}, schema=tables.ROWS.schema)
    tables.write(tables.ROWS, rows, tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=told):
        quantize(configured("tiny"), tmp_path, out=tmp_path, compute=compute, logger=logger)


@pytest.mark.parametrize("path", sorted((CONF / "quantizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_quantizer_is_valid(path, configured):
    assert configured(path.stem).kind in {"rqvae", "residual_kmeans", "graded_kmeans", "random", "imported"}


def test_the_paper_has_four_levels_of_1024_codes_of_dimension_8_and_none_of_the_options(configured):
    paper = configured("paper")
    assert (paper.levels, paper.codebook_size, paper.code_dim, paper.spread_last_level) == (4, 1024, 8, False)
    assert (paper.codebook, paper.sinkhorn_epsilon, paper.rotation, paper.shuffled) == ("gradient", None, False, False)


def test_budgets_that_do_not_fit_the_levels_are_refused(configured):
    with pytest.raises(ValueError, match=r"bits has 2 budgets, but levels is 4, .* give 3, or null"):
        configured("graded_kmeans", bits=(1.0, 2.0))


@pytest.mark.parametrize("name", ["paper", "residual_kmeans", "graded_kmeans"])
def test_a_kmeans_on_fewer_embeddings_than_codes_is_refused(configured, name):
    size = configured(name).codebook_size
    told = f"kmeans_sample is {size - 1}, but codebook_size is {size}, .* give at least {size}"
    with pytest.raises(ValueError, match=told):
        configured(name, kmeans_sample=size - 1)
    configured(name, kmeans_sample=size)


def test_a_warmup_beyond_the_last_step_is_refused(configured):
    with pytest.raises(ValueError, match=r"warmup_steps is 21, but steps is 20, .* give at most 20"):
        configured("tiny", warmup_steps=21)
    configured("tiny", warmup_steps=20)
