"""THE MAIN PATH: ads, users and behaviors in; constrained ad lists and their scores out. One line a stage."""

import json
from typing import Any, NamedTuple

from leadre.alignment.align import align
from leadre.alignment.config import NoAlignment
from leadre.artifacts import Result, Store, fingerprint
from leadre.baselines.recommend import recommend
from leadre.catalog.index import index
from leadre.config import RunConfig
from leadre.data.fingerprint import fingerprint as fingerprint_data
from leadre.data.gather import gather
from leadre.decoding.generate import generate
from leadre.embedding.config import EmbeddingConfig, TransformerConfig
from leadre.embedding.embed import embed
from leadre.lm.config import LMConfig, PretrainedLM
from leadre.lm.encode import encode
from leadre.lm.extend import extend
from leadre.metrics.score import score
from leadre.prompts.compose import compose
from leadre.quantizer.quantize import quantize
from leadre.sft.tune import tune


class Prepared(NamedTuple):
    """What training and evaluation start from."""

    world: Result
    codes: Result
    catalog: Result
    pairs: Result
    base: Result
    tokens: Result


class Evaluated(NamedTuple):
    """The lists and their scores."""

    generations: Result
    scores: Result


def prepare(run: RunConfig, store: Store) -> Prepared:
    """Ads and behaviors in; a catalog of S-IDs, prompts, and a model that has the S-ID tokens (LEADRE 3, 4.2)."""
    world = store.make("world", gather, run.data, source=fingerprint_data(run.data))
    embeddings = store.make(
        "embeddings", embed, run.embedding, world, source=_weights(run.embedding), compute=run.compute
    )
    codes = store.make(
        "codes", quantize, run.quantizer, embeddings, together=True, compute=run.compute, logger=run.logger
    )
    catalog = store.make("catalog", index, run.catalog, world, codes)
    pairs = store.make("pairs", compose, run.prompts, world, catalog)
    base = store.make("base", extend, run.lm, catalog, pairs, source=_weights(run.lm))
    tokens = store.make("tokens", encode, None, base, catalog, pairs)
    return Prepared(world, codes, catalog, pairs, base, tokens)


def train(run: RunConfig, store: Store, prepared: Prepared) -> Result:
    """A model tuned stage by stage, then aligned with business value (LEADRE 4.3)."""
    world, _, catalog, pairs, model, tokens = prepared
    for stage in run.sft.curriculum():  # each stage is a result of its own, shared by all curricula that begin alike
        model = store.make(
            "sft", tune, stage, model, catalog, tokens, together=True, compute=run.compute, logger=run.logger
        )
    if isinstance(run.alignment, NoAlignment):
        return model
    return store.make(
        "aligned",
        align,
        run.alignment,
        model,
        world,
        catalog,
        pairs,
        tokens,
        together=True,
        compute=run.compute,
        logger=run.logger,
    )


def evaluate(run: RunConfig, store: Store, prepared: Prepared, model: Result) -> Evaluated:
    """Constrained lists for the test users, and their scores beside the baselines' (LEADRE 3.4, 5)."""
    world, _, catalog, pairs, _, tokens = prepared
    baselines = store.make("baselines", recommend, run.baselines, world, catalog)
    generations = store.make("generations", generate, run.decoding, model, catalog, pairs, tokens, compute=run.compute)
    scores = store.make("scores", score, run.metrics, world, catalog, baselines, generations)
    return Evaluated(generations, scores)


def _weights(config: EmbeddingConfig | LMConfig) -> str:
    return fingerprint(config.model) if isinstance(config, TransformerConfig | PretrainedLM) else ""


def read_scores(scores: Result) -> dict[str, Any]:
    """The content of ``scores.json``."""
    content: dict[str, Any] = json.loads((scores.path / "scores.json").read_text())
    return content
