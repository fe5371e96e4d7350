"""The stage `codes`: training, resuming, edges, and what it writes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from safetensors.numpy import load_file, save_file
from safetensors.torch import load_file as load_tensors

from leadre import tables
from leadre.quantizer.config import QuantizerConfig
from leadre.quantizer.quantize import quantize, started_rqvae
from leadre.quantizer.residual import quantize_residuals
from leadre.quantizer.rqvae import RQVAE
from leadre.quantizer.rqvae_module import RQVAEModule

CONF = Path(__file__).parents[2] / "conf"


def _config(name, **changes):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        composed = compose(overrides=[f"+quantizer={name}", "+seed=0"])
    plain = OmegaConf.to_container(composed, resolve=True)["quantizer"]
    return replace(TypeAdapter(QuantizerConfig).validate_json(json.dumps(plain), strict=True), **changes)


def _clusters(num_ads=40, dim=6, seed=0):
    rng = np.random.default_rng(seed)
    middles = rng.normal(size=(8, dim))
    return (middles[np.arange(num_ads) % 8] + 0.1 * rng.normal(size=(num_ads, dim))).astype(np.float32)


def _run(folder, x, compute, logger, config):
    embeddings, out = folder / "embeddings", folder / "out"
    embeddings.mkdir(parents=True, exist_ok=True)
    out.mkdir(exist_ok=True)
    save_file({"x": np.ascontiguousarray(x)}, embeddings / "vectors.safetensors")
    pl.DataFrame({"ad_id": [f"ad{i}" for i in range(len(x))]}, schema={"ad_id": pl.String}).write_parquet(
        embeddings / "rows.parquet"
    )
    quantize(config, embeddings, out=out, compute=compute, logger=logger)
    codes = tables.read(tables.CODES, out / "codes.parquet")
    assert codes["ad_id"].to_list() == [f"ad{i}" for i in range(len(x))]
    return np.array(codes["codes"].to_list()), json.loads((out / "diagnostics.json").read_text())


def test_the_diagnostics_tell_what_the_codes_are(tmp_path, compute, logger):
    x = np.concatenate([_clusters(40), _clusters(3)])  # the first three texts again
    x[40:] = x[:3]
    codes, report = _run(tmp_path, x, compute, logger, _config("tiny", spread_last_level=False))
    assert codes.shape == (43, 2)
    assert codes[40:].tolist() == codes[:3].tolist()
    distinct = len(np.unique(codes, axis=0))
    assert report["collision_rate"] == pytest.approx(1 - distinct / 43)
    assert report["collision_rate_distinct"] == pytest.approx(1 - distinct / 40) == report["collision_rate_nearest"]
    assert (report["num_ads"], report["num_distinct"], report["levels"], report["codebook_size"]) == (43, 40, 2, 8)
    assert report["counts"] == [np.bincount(level, minlength=8).tolist() for level in codes.T]
    assert report["dead_codes"] == [level.count(0) for level in report["counts"]]
    assert sum(report["bits"]) <= np.log2(43)
    assert len(report["usage"]) == len(report["perplexity"]) == len(report["bits"]) == 2


def test_saved_weights_give_the_saved_codes(tmp_path, compute, logger):
    x = _clusters()
    codes, report = _run(tmp_path, x, compute, logger, _config("tiny", spread_last_level=False))
    shape = json.loads((tmp_path / "out" / "quantizer.json").read_text())
    assert shape.pop("kind") == "rqvae"
    network = RQVAE(**shape, beta_quant=0.0, generator=torch.Generator())
    network.load_state_dict(load_tensors(tmp_path / "out" / "quantizer.safetensors"))
    assert network.encode(torch.from_numpy(x)).tolist() == codes.tolist()
    rebuilt = network.decode(torch.from_numpy(codes)).numpy()
    relative = ((x - rebuilt) ** 2).sum() / ((x - x.mean(0)) ** 2).sum()
    assert report["reconstruction_error"] == pytest.approx(relative, rel=1e-4)


def test_training_rebuilds_embeddings_and_tells_clusters_apart(tmp_path, compute, logger):
    config = _config("tiny", steps=300, hidden_dims=(32,), batch_size=40, restart_every_steps=20)
    codes, report = _run(tmp_path, _clusters(), compute, logger, config)
    assert report["reconstruction_error"] < 0.1
    first = codes[:, 0].reshape(5, 8)
    assert (first == first[0]).mean() > 0.9
    assert report["collision_rate_distinct"] == 0.0  # five ads a cluster, eight codes at the last level


def test_ads_that_share_their_nearest_codes_are_spread_only_when_asked(tmp_path, compute, logger):
    kept, plain = _run(tmp_path / "kept", _clusters(), compute, logger, _config("tiny", spread_last_level=False))
    spread, report = _run(tmp_path / "spread", _clusters(), compute, logger, _config("tiny", spread_last_level=True))
    assert kept[:, 0].tolist() == spread[:, 0].tolist()
    assert plain["collision_rate_distinct"] == report["collision_rate_nearest"] > report["collision_rate_distinct"]


def test_the_seed_tells_everything(tmp_path, compute, logger):
    same = [_run(tmp_path / str(i), _clusters(), compute, logger, _config("tiny", seed=3)) for i in range(2)]
    other, _ = _run(tmp_path / "other", _clusters(), compute, logger, _config("tiny", seed=4))
    assert same[0][0].tolist() == same[1][0].tolist() != other.tolist()
    weights = [(tmp_path / str(i) / "out" / "quantizer.safetensors").read_bytes() for i in range(2)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("dies_at", [4, 5, 6, 9, 15])
def test_a_killed_training_goes_on_to_the_same_codes_restarts_included(tmp_path, compute, logger, monkeypatch, dies_at):
    x, config = _clusters(20), _config("tiny", codebook_size=16)  # codes go unused, so that there are restarts
    whole, _ = _run(tmp_path / "whole", x, compute, logger, config)
    step = RQVAEModule.training_step

    def dying(self, batch):
        if self.global_step == dies_at:
            raise RuntimeError("killed")
        return step(self, batch)

    monkeypatch.setattr(RQVAEModule, "training_step", dying)
    with pytest.raises(RuntimeError, match="killed"):
        _run(tmp_path / "killed", x, compute, logger, config)
    monkeypatch.undo()
    resumed, _ = _run(tmp_path / "killed", x, compute, logger, config)
    assert resumed.tolist() == whole.tolist()
    files = ("quantizer.safetensors", "metrics.csv", "diagnostics.json")
    for name in files:
        assert (tmp_path / "killed" / "out" / name).read_bytes() == (tmp_path / "whole" / "out" / name).read_bytes()


def test_metrics_tell_losses_usage_perplexity_and_collisions(tmp_path, compute, logger):
    _run(tmp_path, _clusters(), compute, logger, _config("tiny"))
    header = (tmp_path / "out" / "metrics.csv").read_text().splitlines()[0].split(",")
    codebooks = {f"{figure}_{level}" for figure in ("usage", "perplexity") for level in (1, 2)}
    train = {"reconstruction_loss", "quantization_loss", "collision_rate", *codebooks}
    assert {f"train/{name}" for name in train} <= set(header)
    assert {f"valid/{name}" for name in train - {"quantization_loss"}} <= set(header)


def test_a_start_by_kmeans_codes_better_than_one_drawn_at_random():
    x = torch.from_numpy(_clusters(200))
    network = started_rqvae(_config("tiny"), x)
    latents = network.latents(x)

    def error(codebooks):
        return float((latents - quantize_residuals(latents, codebooks).codewords.sum(0)).square().mean())

    drawn = latents.std() * torch.randn(network.codebooks.shape, generator=torch.Generator().manual_seed(0))
    assert error(network.codebooks.detach()) < 0.3 * error(drawn)


def test_a_code_that_goes_unused_is_moved_to_where_ads_are(tmp_path, compute, logger, monkeypatch):
    """All codes of both levels but one start far away; without restarts they stay unused."""

    def far_away(config, x):
        network = started_rqvae(config, x)
        network.codebooks.data[:, 1:] = 1e3
        return network

    monkeypatch.setattr("leadre.quantizer.quantize.started_rqvae", far_away)
    config = _config("tiny", spread_last_level=False)
    _, left = _run(tmp_path / "left", _clusters(), compute, logger, replace(config, restart_every_steps=1000))
    _, moved = _run(tmp_path / "moved", _clusters(), compute, logger, config)
    assert left["dead_codes"] == [7, 7]
    assert max(moved["dead_codes"]) <= 2


@pytest.mark.parametrize("name", ["tiny", "residual_kmeans"])
@pytest.mark.parametrize("x", [_clusters(1), _clusters(3), np.ones((5, 4), np.float32)], ids=["one", "three", "equal"])
def test_fewer_ads_than_codes_and_equal_embeddings_are_coded(tmp_path, compute, logger, x, name):
    config = _config(name, levels=2, codebook_size=8)
    codes, report = _run(tmp_path, x, compute, logger, config)
    assert np.isfinite([report["reconstruction_error"], *report["perplexity"], *report["bits"]]).all()
    assert len(np.unique(codes, axis=0)) == len(np.unique(x, axis=0))
    assert report["collision_rate_distinct"] == 0.0


def test_residual_kmeans_is_a_kind_of_its_own(tmp_path, compute, logger):
    x = _clusters(200)
    codes, report = _run(tmp_path, x, compute, logger, _config("residual_kmeans", levels=2, codebook_size=8))
    codebooks = load_file(tmp_path / "out" / "quantizer.safetensors")["codebooks"]
    assert quantize_residuals(torch.from_numpy(x), torch.from_numpy(codebooks)).codes.tolist() == codes.tolist()
    assert report["reconstruction_error"] < 0.05
    assert report["kind"] == "residual_kmeans"


def test_embeddings_that_are_not_finite_are_an_error_that_names_the_ad(tmp_path, compute, logger):
    x = _clusters()
    x[5, 2], x[9, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"embeddings of 2 ads are not finite, the first is ad 'ad5'"):
        _run(tmp_path, x, compute, logger, _config("tiny"))


def test_no_ads_are_an_error(tmp_path, compute, logger):
    with pytest.raises(ValueError, match="has no ad: the quantizer needs at least one"):
        _run(tmp_path, np.zeros((0, 4), np.float32), compute, logger, _config("tiny"))


def test_vectors_without_their_ads_are_an_error(tmp_path, compute, logger):
    save_file({"x": np.zeros((2, 4), np.float32)}, tmp_path / "vectors.safetensors")
    pl.DataFrame({"ad_id": ["a"]}).write_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="has 2 vectors but 1 rows: make the embeddings anew"):
        quantize(_config("tiny"), tmp_path, out=tmp_path, compute=compute, logger=logger)


@pytest.mark.parametrize("path", sorted((CONF / "quantizer").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_quantizer_is_valid(path):
    assert _config(path.stem).levels >= 2


def test_the_paper_has_four_levels_of_1024_codes_of_dimension_8():
    paper = _config("paper")
    assert (paper.levels, paper.codebook_size, paper.code_dim, paper.spread_last_level) == (4, 1024, 8, False)
