"""THE MAIN PATH: ads, users and behaviors in; constrained ad lists and their scores out. One line a stage."""

import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

from leadre.adworld.appraise import appraise
from leadre.alignment.align import align
from leadre.alignment.config import NoAlignment
from leadre.alignment.prefer import prefer
from leadre.artifacts import Result, Store, differences, fingerprint, origins
from leadre.baselines.learn import learn
from leadre.baselines.recommend import recommend
from leadre.catalog.index import index
from leadre.config import GenerateConfig, RunConfig
from leadre.data.fingerprint import fingerprint as fingerprint_data
from leadre.data.gather import gather
from leadre.decoding.config import DecodingConfig
from leadre.embedding.embed import embed
from leadre.embedding.fingerprint import fingerprint as fingerprint_embedding
from leadre.generation.generate import generate, generate_audience
from leadre.generation.requests import fingerprint as fingerprint_filters
from leadre.inspection.inspect import inspect
from leadre.lm.config import PretrainedLM
from leadre.lm.encode import encode
from leadre.lm.extend import extend
from leadre.ltr.learn_to_rank import learn_to_rank
from leadre.metrics.score import score
from leadre.prompts.audience import compose_audience
from leadre.prompts.compose import compose
from leadre.quantizer.imported import fingerprint as fingerprint_quantizer
from leadre.quantizer.quantize import quantize
from leadre.sft.tune import tune
from leadre.trained import (
    Trained,
    check_language,
    check_next_n,
    check_support,
    given_audience,
    prompts_of,
    trained,
    warn_of_learned,
)
from leadre.training.config import ComputeConfig

log = logging.getLogger(__name__)


class Indexed(NamedTuple):
    """The ad side: what an ad is called, and what the name is made from."""

    world: Result
    embeddings: Result
    codes: Result
    catalog: Result


class Prepared(NamedTuple):
    """What training and evaluation start from."""

    world: Result
    catalog: Result
    ltr: Result
    pairs: Result
    base: Result
    tokens: Result


class Evaluated(NamedTuple):
    """The lists and their scores."""

    generations: Result
    scores: Result


class Listed(NamedTuple):
    """Lists for a whole user base, and what they were made for; without a world where the prompts were given."""

    world: Result | None
    audience: Result
    generations: Result


def index_ads(run: RunConfig, store: Store) -> Indexed:
    """Ads in; a catalog of S-IDs out (LEADRE 3.2, 3.3). No S-ID of a previous catalog moves."""
    before = _previous(run, store)
    world = store.make("world", gather, run.data, source=fingerprint_data(run.data))
    embeddings = store.make(
        "embeddings",
        embed,
        run.embedding,
        world,
        *before.embeddings,
        source=fingerprint_embedding(run.embedding),
        compute=run.compute,
        cache=store.root / "vectors",
    )
    codes = store.make(
        "codes",
        quantize,
        run.quantizer,
        embeddings,
        *before.codes,
        source=fingerprint_quantizer(run.quantizer),
        together=True,
        compute=run.compute,
        logger=run.logger,
    )
    catalog = store.make("catalog", index, run.catalog, world, codes, *before.catalog)
    return Indexed(world, embeddings, codes, catalog)


def inspect_index(run: RunConfig, store: Store, indexed: Indexed) -> Result:
    """How good the catalog is, for a person to judge (LEADRE 5.2.4)."""
    return store.make("inspection", inspect, run.inspection, *indexed)


def prepare(run: RunConfig, store: Store, indexed: Indexed) -> Prepared:
    """Prompts of users, a model that has the S-ID tokens, and another retrieval strategy (LEADRE 4.2, 5.1.2)."""
    world, _, codes, catalog = indexed
    ltr = store.make("ltr", learn_to_rank, run.ltr, world, catalog)
    pairs = store.make("pairs", compose, run.prompts, world, catalog)
    base = store.make(
        "base",
        extend,
        run.lm,
        catalog,
        pairs,
        *([codes] if run.lm.sid_start == "codebook" else []),
        source=fingerprint(run.lm.model) if isinstance(run.lm, PretrainedLM) else "",
    )
    tokens = store.make("tokens", encode, None, base, catalog, pairs)
    return Prepared(world, catalog, ltr, pairs, base, tokens)


def train(run: RunConfig, store: Store, prepared: Prepared) -> Result:
    """A model tuned stage by stage, then aligned with business value (LEADRE 4.3)."""
    world, catalog, ltr, pairs, model, tokens = prepared
    _check_alignment(run, world)  # now, not after hours of tuning
    for stage in run.sft.curriculum():  # each stage is a result of its own, shared by all curricula that begin alike
        model = store.make(
            "sft", tune, stage, model, catalog, tokens, together=True, compute=run.compute, logger=run.logger
        )
    if isinstance(run.alignment, NoAlignment):
        return model
    preferences = store.make(
        "preferences",
        prefer,
        run.alignment.preferences,
        model,
        world,
        catalog,
        pairs,
        tokens,
        ltr,
        compute=run.compute,
    )
    return store.make(
        "aligned",
        align,
        run.alignment,
        model,
        world,
        catalog,
        pairs,
        tokens,
        ltr,
        preferences,
        together=True,
        compute=run.compute,
        logger=run.logger,
    )


def evaluate(run: RunConfig, store: Store, prepared: Prepared, model: Result) -> Evaluated:
    """Constrained lists for the test users, and their scores beside the baselines' (LEADRE 3.4, 5)."""
    world, catalog, ltr, pairs, _, _ = prepared
    learned = learn_baselines(run, store, world, catalog)
    baselines = store.make("baselines", recommend, run.baselines, world, catalog, *learned.values())
    generations = list_ads(run.decoding, store, model, catalog, pairs, compute=run.compute)
    values = []
    if (world.path / "hidden.safetensors").exists():  # a simulated world knows what an impression is worth
        values = [store.make("values", appraise, None, world, baselines, generations)]
    scores = store.make("scores", score, run.metrics, world, catalog, baselines, ltr, generations, *values)
    return Evaluated(generations, scores)


def learn_baselines(run: RunConfig, store: Store, world: Result, catalog: Result) -> dict[str, Result]:
    """Each learned baseline by its name, in their order; a result each, so that changing one leaves the others."""
    return {
        name: store.make(
            f"baseline_{name}",  # a stage each, for a manifest names one input a stage
            learn,
            run.baselines.learned[name],
            world,
            catalog,
            together=True,
            compute=run.compute,
            logger=run.logger,
        )
        for name in sorted(run.baselines.learned)
    }


def list_ads(
    decoding: DecodingConfig, store: Store, model: Result, catalog: Result, prompts: Result, *, compute: ComputeConfig
) -> Result:
    """Constrained lists for the users of ``main.test.parquet`` (LEADRE 3.4)."""
    return store.make(
        "generations",
        generate,
        decoding,
        model,
        catalog,
        prompts,
        source=_filters(decoding),
        together=True,
        compute=compute,
    )


def generate_lists(run: GenerateConfig, store: Store) -> Listed:
    """Constrained lists for every user of today, by a model of an earlier day (LEADRE 3.4)."""
    then = trained(run.model, _named(run.model, store, "aligned", "sft"))
    check_next_n(run.decoding.next_n, then)
    check_support(run.decoding.normalizer, then)
    world, audience = _given(run, then) if run.audience else _composed(run, store, then)
    warn_of_learned(audience, then)
    generations = store.make(
        "generations",
        generate_audience,
        run.decoding,
        then.model,
        then.catalog,
        audience,
        *([world] if world else []),  # it tells which ads run
        source=_filters(run.decoding),
        together=True,
        compute=run.compute,
        ray_actors=run.ray_actors,
    )
    return Listed(world, audience, generations)


def _composed(run: GenerateConfig, store: Store, then: Trained) -> tuple[Result, Result]:
    """Today's world, and the prompts of its users."""
    world = then.world
    if run.data is not None:
        world = store.make("world", gather, run.data, source=fingerprint_data(run.data))
    check_language(world.path / "world.json", then.pairs, of="data")
    source = f"as of {run.as_of}"
    audience = store.make(
        "audience", compose_audience, prompts_of(then.pairs), world, then.catalog, source=source, as_of=run.as_of
    )
    return world, audience


def _given(run: GenerateConfig, then: Trained) -> tuple[None, Result]:
    """Prompts that a platform made itself: nothing is known of the world that they are from."""
    audience = given_audience(Path(run.audience or ""))
    check_language(audience.path / "prompts.json", then.pairs, of="audience")
    log.warning("audience is %s: nothing is known of ads that no longer run; name them in taken_down", audience.path)
    return None, audience


def _filters(decoding: DecodingConfig) -> str:
    """What tells one day's filters from another's."""
    return "" if decoding.filters is None else fingerprint_filters(Path(decoding.filters))


def _check_alignment(run: RunConfig, world: Result) -> None:
    impressions = json.loads((world.path / "world.json").read_text(encoding="utf-8"))["counts"]["impressions"]
    if not impressions and not isinstance(run.alignment, NoAlignment):
        raise ValueError(
            f"alignment is {run.alignment.kind!r}, but the data has no impressions, whose ECPM would order its pairs: "
            "give data.root the table impressions, or use alignment=none"
        )


def _named(name: str, store: Store, *stages: str) -> Path:
    """The folder of a result that the user names by its folder, or by its key in one of some stages."""
    if Path(name).name != name:
        return Path(name)
    folders = [store.root / stage / name for stage in stages]
    return next((folder for folder in folders if folder.is_dir()), folders[0])


_HARMLESS = {"seed", "model", "revision", "package", "sha256", "batch_tokens"}
"""Settings that may change from day to day: nothing is drawn anew, and `embed` tells weights by what they hold."""


class _Previous(NamedTuple):
    """What the ad side goes on from: no result or one each."""

    embeddings: tuple[Result, ...] = ()
    codes: tuple[Result, ...] = ()
    catalog: tuple[Result, ...] = ()


def _previous(run: RunConfig, store: Store) -> _Previous:
    if run.previous_catalog is None:
        return _Previous()
    folder = _named(run.previous_catalog, store, "catalog")
    found = origins(folder, _Previous._fields) if (folder / "manifest.json").is_file() else {}
    if set(_Previous._fields) - set(found):
        raise ValueError(
            f"previous_catalog is {run.previous_catalog!r}, but {folder} is no catalog in a store: name one by its "
            f"folder or key, as index.py and train.py print it ({store.root / 'catalog' / 'KEY'})"
        )
    for name, config in (("embedding", run.embedding), ("quantizer", run.quantizer)):
        changed = differences(found["embeddings" if name == "embedding" else "codes"], config, passed_over=_HARMLESS)
        if changed:
            raise ValueError(
                f"previous_catalog was made with {'; '.join(f'{name}.{change}' for change in changed)}: S-IDs hold in "
                "the space they were made in; use the settings of then, or leave out previous_catalog to index anew"
            )
    return _Previous(*((found[stage],) for stage in _Previous._fields))


def read_scores(scores: Result) -> dict[str, Any]:
    """The content of ``scores.json``."""
    content: dict[str, Any] = json.loads((scores.path / "scores.json").read_text())
    return content
