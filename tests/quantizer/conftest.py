"""What tests of the stage share: shipped configurations, and a run of the stage on vectors and texts."""

import hashlib
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from pydantic import TypeAdapter
from safetensors.numpy import save_file

from leadre import tables
from leadre.quantizer.config import QuantizerConfig
from leadre.quantizer.quantize import quantize

CONF = Path(__file__).parents[2] / "conf"


class Ran(NamedTuple):
    """A result's folder, its ads, their codes ``(N, M)``, and ``diagnostics.json``."""

    out: Path
    ad_ids: list[str]
    codes: np.ndarray
    report: dict


@pytest.fixture(scope="session")
def configured():
    """A shipped configuration by name, with changes."""

    @cache
    def shipped(name):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose(overrides=[f"+quantizer={name}", "+seed=0"])
        plain = OmegaConf.to_container(composed, resolve=True)["quantizer"]
        return TypeAdapter(QuantizerConfig).validate_json(json.dumps(plain), strict=True)

    return lambda name, **changes: replace(shipped(name), **changes)


@pytest.fixture(scope="session")
def run(compute, logger):
    """Runs the stage in a folder; ad i is ``ad<i>`` and has a text of its own unless told otherwise."""

    def run(folder, x, config, *, ad_ids=None, texts=None, previous=None, checkpoint_every_steps=1000):
        ad_ids = [f"ad{i}" for i in range(len(x))] if ad_ids is None else ad_ids
        embeddings, out = folder / "embeddings", folder / "out"
        embeddings.mkdir(parents=True, exist_ok=True)
        out.mkdir(exist_ok=True)
        keys = [hashlib.sha256(str(text).encode()).hexdigest()[:32] for text in texts or ad_ids]
        save_file({"x": np.ascontiguousarray(x)}, embeddings / "vectors.safetensors")
        rows = pl.DataFrame({"ad_id": ad_ids, "text_key": keys}, schema=tables.ROWS.schema)
        tables.write(tables.ROWS, rows, embeddings / "rows.parquet")
        seldom = replace(compute, checkpoint_every_steps=checkpoint_every_steps)
        quantize(config, embeddings, *([previous] if previous else []), out=out, compute=seldom, logger=logger)
        listed = tables.read(tables.CODES, out / "codes.parquet")
        report = json.loads((out / "diagnostics.json").read_text())
        return Ran(out, listed["ad_id"].to_list(), np.array(listed["codes"].to_list()), report)

    return run


@pytest.fixture(scope="session")
def ran(run, configured, clusters, tmp_path_factory):
    """A run on ``clusters(num_ads)`` that no test changes: made once for all that ask for the same."""

    @cache
    def ran(name, num_ads=40, **changes):
        return run(tmp_path_factory.mktemp("ran"), clusters(num_ads), configured(name, **changes))

    return ran


@pytest.fixture(scope="session")
def clusters():
    """Vectors ``(N, dim)`` around eight middles, ad i around middle i % 8."""

    def clusters(num_ads=40, dim=6, seed=0):
        middles = np.random.default_rng(0).normal(size=(8, dim))
        noise = np.random.default_rng([seed, 1]).normal(size=(num_ads, dim))
        return (middles[np.arange(num_ads) % 8] + 0.1 * noise).astype(np.float32)

    return clusters
