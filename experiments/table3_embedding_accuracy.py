"""LEADRE's Table 3: are the ads that are nearest by embedding of the same category?

48 categories x 100 ads are the queries (the categories with the most ads; of a smaller one all its ads), and the
accuracy is the share of the Top-K ads by cosine that have the query's category, as a mean over a category's queries,
then over the categories. The pool is the sampled ads or the full catalog, the query left out; ties go by ad_id.
With 100 ads a category, 99 of the Top-100 can be right.

    python -m experiments.table3_embedding_accuracy                                   # the paper world, every encoder
    python -m experiments.table3_embedding_accuracy data=amazon_beauty data.root=PATH encoders=lsa,hashing
    python -m experiments.table3_embedding_accuracy category=first text=name seed=1
    python -m experiments.table3_embedding_accuracy encoders=hunyuan embedding.precision=bf16
    python -m experiments.table3_embedding_accuracy encoders=bge_m3 embedding.model=FOLDER

``text=name`` embeds the ads' names alone: the full description names the category itself. ``seed`` draws the ads that
are asked about, the same for all rows; ``seeds=0,1,2`` are those of what is random in a row: LSA's directions, random
vectors, which texts are exchanged. Any other row is one and the same result with every seed, and a note says which are.
All other arguments are Hydra overrides, those of ``embedding`` for every encoder that is named. Encoders that cannot
be run, such as those whose weights are not on this machine, are listed with the reason. What it leaves is that of any
study (docs/studies.md).
"""

import json
import sys
import time
from collections.abc import Iterable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from experiments.content import content_of
from experiments.rows import Found, log_to_stderr, run_rows
from experiments.run import finish
from experiments.study import SEEDS, Claim, Row, Study, seeds_of
from experiments.table3_lines import (
    NUM_ADS,
    PAPER,
    SYSTEM,
    Ads,
    Kind,
    LineConfig,
    Tasks,
    column,
    columns,
    count,
    next_best,
    paper_row,
    read_ads,
    tasks,
)
from leadre import tables
from leadre.artifacts import ArtifactError, Result, Store
from leadre.command_line import check, configured
from leadre.config import CONF, ConfigError, RunConfig
from leadre.data.ad_text import describe
from leadre.data.fingerprint import fingerprint as fingerprint_data
from leadre.data.gather import gather
from leadre.embedding.config import TransformerConfig
from leadre.embedding.embed import embed
from leadre.embedding.fingerprint import fingerprint
from leadre.embedding.weights import available

VERSION = 1
OWN = ("encoders", "category", "text", "seed", "seeds")
"""Arguments that are not Hydra's."""
NEEDS_MORE = ("transformer", "vectors")
"""Options of ``conf/embedding`` that are no encoder until one is named."""
LINE = "line="
"""Begins the override of a row that is no encoder: what is counted instead."""
NEED_AN_ENCODER: tuple[Kind, ...] = ("embedding", "exchanged")
RANDOM: tuple[Kind, ...] = ("exchanged", "random_texts", "random_ads")
RANDOM_TEXTS = "random vectors, one a text"
REFERENCES = (
    Row("at most", (f"{LINE}at_most",), system=SYSTEM),
    Row("chance", (f"{LINE}chance",), control=True, system=SYSTEM),
    Row(RANDOM_TEXTS, (f"{LINE}random_texts",), control=True, system=SYSTEM),
    Row("random vectors, one an ad", (f"{LINE}random_ads",), control=True, system=SYSTEM),
)


def exchanged(encoder: str) -> str:
    """The row in which an encoder's texts have each other's vectors."""
    return f"{encoder}, texts exchanged"


def ahead(text: str, better: str, worse: str, k: int, source: str) -> Claim:
    """A claim that one encoder is ahead of another; what it says is taken out where both have their texts exchanged."""
    return Claim(text, better, worse, column("sample", "all", k), (exchanged(better), exchanged(worse)), source)


def ahead_in_the_paper(encoder: str, k: int) -> Claim:
    """A claim that an encoder is ahead of who follows it in a column of the paper."""
    follows = next_best(encoder, k)
    among = "at the first ad" if k == 1 else f"among the first {k}"
    return ahead(f"{encoder} is ahead of {follows}, the paper's next {among}", encoder, follows, k, "LEADRE, Table 3")


CLAIMS = (
    ahead_in_the_paper("e5_large_instruct", 50),
    ahead_in_the_paper("hunyuan", 1),
    ahead_in_the_paper("hunyuan", 10),
    ahead_in_the_paper("hunyuan", 50),
    ahead("E5 is ahead of a BERT that was not trained for retrieval", "e5_large_instruct", "bert_chinese", 100,
          "LEADRE, Table 3"),
    Claim("the words of an ad tell its category", "lsa", RANDOM_TEXTS, "Top10", (exchanged("lsa"), RANDOM_TEXTS),
          "ours: what Table 3 rests on"),
    ahead("a pre-trained encoder puts a category together better than the words do", "sentence_bert_l6", "lsa", 10,
          "ours: why there are encoders in Table 3"),
)  # fmt: skip
"""The paper says that E5 is best and Hunyuan "competitive" (5.2.4): what can be tested is who is ahead of whom."""


class Choice(NamedTuple):
    """What is asked for on the command line; ``overrides`` are Hydra's."""

    encoders: tuple[str, ...]
    category: str
    text: str
    seed: int
    seeds: tuple[int, ...]
    overrides: tuple[str, ...]


def choice(arguments: Iterable[str]) -> Choice:
    """Read the command line.

    Raises:
        ValueError: If an argument is no key=value, or a value is not one of those there are.
    """
    typed = dict(_key_and_value(argument) for argument in arguments)
    own = {name: typed.pop(name) for name in OWN if name in typed}
    known = encoders()
    asked = tuple(dict.fromkeys(filter(None, own.get("encoders", "").split(","))))
    seed = own.get("seed", "0")
    if "embedding" in typed:
        raise ValueError(f"embedding={typed['embedding']}: encoders are named by encoders=NAME,NAME")
    if unknown := [name for name in asked if name not in known]:
        raise ValueError(f"encoders has {unknown[0]!r}, which is none of {', '.join(known)}")
    if not seed.isdecimal():
        raise ValueError(f"seed is {seed!r}, but must be a whole number of 0 or more")
    for name, options in (("category", ("second", "first")), ("text", ("full", "name"))):
        if own.get(name, options[0]) not in options:
            raise ValueError(f"{name} is {own[name]!r}, but must be {' or '.join(options)}")
    world = [] if {"data", "data/world"} & typed.keys() else ["data/world=paper"]
    return Choice(
        encoders=asked or known,
        category=own.get("category", "second"),
        text=own.get("text", "full"),
        seed=int(seed),
        seeds=tuple(seeds_of(own.get("seeds", SEEDS))),
        overrides=(*world, *(f"{key}={value}" for key, value in typed.items())),
    )


def check_all(asked: Choice) -> None:
    """Check the configuration of every encoder, before anything runs.

    Raises:
        ConfigError: With every fault, and the encoders that have it.
    """
    faults: dict[str, list[str]] = {}
    for encoder in asked.encoders:
        try:
            check([f"embedding={encoder}", *asked.overrides], name="index")
        except ConfigError as error:
            faults.setdefault(str(error), []).append(encoder)
    if faults:
        raise ConfigError("\n".join(f"encoders={','.join(names)}: {fault}" for fault, names in faults.items()))


def encoders() -> tuple[str, ...]:
    """Every encoder of ``conf/embedding``: the paper's in its order, then ours."""
    found = {path.stem for path in (CONF / "embedding").glob("*.yaml")} - set(NEEDS_MORE)
    return (*(name for name in PAPER if name in found), *sorted(found - PAPER.keys()))


def names_alone(world: Path, *, out: Path) -> None:
    """Write the world's ads anew with a description that tells their name and nothing else."""
    ads = tables.read(tables.ADS, world / "ads.parquet")
    language = json.loads((world / "world.json").read_text())["language"]
    told = [
        describe(
            name=name,
            product_type=None,
            first_category=None,
            second_category=None,
            attributes=(),
            language=language,
        )
        for name in ads["name"]
    ]
    tables.write(tables.ADS, ads.with_columns(description=pl.Series(told, dtype=pl.String)), out / "ads.parquet")


@cache
def config_of(*overrides: str) -> RunConfig:
    """The configuration of a row."""
    return configured(overrides, name="index")


def world_of(asked: Choice, config: RunConfig, store: Store) -> Result:
    """The world whose ads are embedded, with their whole description or their names alone."""
    world = store.make("world", gather, config.data, source=fingerprint_data(config.data))
    return store.make("names", names_alone, None, world) if asked.text == "name" else world


def study_of(asked: Choice, found: Tasks) -> Study:
    """The table as a study: a row an encoder, then what encoders are held against.

    Args:
        asked: What is asked for.
        found: The queries and pools, which tell the K that can be had.
    """
    lines = [Row(name, (f"embedding={name}",), paper=paper_row(name), system=SYSTEM) for name in asked.encoders]
    main, more = columns(found, "sample", "all"), columns(found, "sample", "distinct")
    sampled, catalog = len(found["sample", "all"].pool), len(found["catalog", "all"].pool)
    if len(found["catalog", "distinct"].pool) == catalog:  # no two ads have one text
        more = ()
    if catalog > sampled:
        more += columns(found, "catalog", "all")
    names = {*asked.encoders, *(row.name for row in REFERENCES)}
    claims = tuple(claim for claim in CLAIMS if {claim.better, claim.worse} <= names and claim.on in main)
    needed = {name for claim in claims for name in claim.control or ()}
    controls = [
        Row(exchanged(name), (f"embedding={name}", f"{LINE}exchanged"), control=True, system=SYSTEM)
        for name in asked.encoders
        if exchanged(name) in needed
    ]
    return Study(
        name="table3_embedding_accuracy",
        title="Table 3: accuracy of the nearest ads by embedding",
        question="Of which category are the ads that an encoder puts next to an ad? In the paper E5 leads from the "
        "tenth ad on, Hunyuan at the first.",
        columns=(*main, *more),
        rows=(*lines, *REFERENCES, *controls),
        compared=main,
        claims=claims,
        run=partial(counted, asked),
        unit="texts of ads",
    )


def counted(asked: Choice, overrides: Sequence[str], seed: int) -> Result:
    """The scores of a row: of an encoder, or of what its ``line=`` names."""
    named = [text.removeprefix(LINE) for text in overrides if text.startswith(LINE)]
    kind: Any = named[0] if named else "embedding"
    hydras = [text for text in overrides if not text.startswith(LINE)]
    config = config_of(*hydras, f"seed={seed}") if kind in NEED_AN_ENCODER else config_of(*hydras)
    store = Store(Path(config.store.root))
    world = world_of(asked, config, store)
    told = LineConfig(kind=kind, category=asked.category, sample=asked.seed, seed=seed if kind in RANDOM else None)  # type: ignore[arg-type]
    needed = [vectors(config, store, world)] if kind in NEED_AN_ENCODER else []
    return store.make("accuracy", count, told, world, *needed)


def vectors(config: RunConfig, store: Store, world: Result) -> Result:
    """The embeddings of the world's ads."""
    return store.make(
        "embeddings",
        embed,
        config.embedding,
        world,
        source=fingerprint(config.embedding),
        compute=config.compute,
        cache=store.root / "vectors",
    )


def without_weights(asked: Choice) -> dict[str, str]:
    """Why encoders cannot be run here.

    Raises:
        ValueError: If none can.
    """
    missing = {}
    for encoder in asked.encoders:
        embedding = config_of(*asked.overrides, f"embedding={encoder}", f"seed={asked.seeds[0]}").embedding
        if isinstance(embedding, TransformerConfig) and available(embedding) is None:
            missing[encoder] = f"the weights of {embedding.model} are not on this machine"
    if len(missing) == len(asked.encoders):
        raise ValueError(f"none of the encoders can run: {'; '.join(missing.values())}; use encoders=lsa,hashing")
    return missing


def table3(asked: Choice) -> tuple[Study, Found, list[str]]:
    """Run every encoder that can be run, and what they are held against.

    Returns:
        The study, what it found, and what a reader must know of the ads.
    """
    missing = without_weights(asked)
    config = config_of(*asked.overrides)
    world = world_of(asked, config, Store(Path(config.store.root)))
    ads = read_ads(world.path, category=asked.category)
    drawn = tasks(ads, seed=asked.seed)
    study = study_of(asked, drawn)
    missing |= {exchanged(name): reason for name, reason in missing.items()}
    settings = {row.name: [*asked.overrides, *row.overrides] for row in study.rows}
    here = tuple(row for row in study.rows if row.name not in missing)
    ran = run_rows(study._replace(rows=here), settings, asked.seeds)
    scores = {row.name: ran.scores.get(row.name, {}) for row in study.rows}
    not_run = {row.name: missing[row.name] for row in study.rows if row.name in missing} | dict(ran.not_run)
    return study, Found(scores, not_run, asked.seeds), [*_told(asked, ads, drawn), *_told_of_seeds(ran)]


def main(arguments: Sequence[str]) -> None:
    """Run all encoders, show the table and the verdicts, and as the last line print the folder as JSON."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\nencoders: {', '.join(encoders())}\n")
        return
    try:
        asked = choice(arguments)
        check_all(asked)
        log_to_stderr()
        start = time.monotonic()
        study, found, notes = table3(asked)
    except (ArtifactError, ConfigError, ValueError) as error:
        sys.exit(str(error))
    run = config_of(*asked.overrides)
    command = f"python -m experiments.{study.name} {' '.join(arguments)}".strip()
    content = content_of(study, found, store=Path(run.store.root), command=command, seconds=time.monotonic() - start)
    data = content.data.model_copy(update={"name": _data_name(asked, content.data.name)})
    finish(study, content.model_copy(update={"data": data, "notes": (*content.notes, *notes)}), run)


def _key_and_value(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        raise ValueError(f"{argument!r} is no key=value; --help tells what there is")
    return key, value


def _data_name(asked: Choice, name: str) -> str:
    told = [name, *(["names alone"] if asked.text == "name" else [])]
    return ", ".join([*told, *(["first-level categories"] if asked.category == "first" else [])])


def _told(asked: Choice, ads: Ads, drawn: Tasks) -> list[str]:
    task = drawn["sample", "all"]
    categories, without = len(np.unique(task.category[task.queries])), int((task.category < 0).sum())
    text = "full description, which names the category" if asked.text == "full" else "name alone"
    return [
        f"{len(ads.rows):,} ads with {len(np.unique(ads.texts)):,} distinct texts, {without:,} without a category. "
        f"Asked about are {len(task.queries):,} ads of {categories} categories ({ads.categories.name}, at most "
        f"{NUM_ADS} ads each, seed {asked.seed}). Embedded is the {text}.",
        "The unit of the intervals is a text with all its ads, for ads of one text share their neighbors. Columns: the "
        "share of the nearest K of the sampled ads; 'distinct': of one ad a text; 'catalog': of all ads. The ads "
        "drawn are the same for all.",
        "At most: a category has no more ads to be found. Chance: a random order of the pool. Texts exchanged: each "
        "text has another's vector, so vectors and copies are the encoder's and nothing is left of what a text says; "
        "that is the control of each claim, in both rows where both are encoders.",
    ]


def _told_of_seeds(ran: Found) -> list[str]:
    """Which rows have nothing random, so that their seeds tell nothing of how other trainings would differ."""
    same = [name for name, runs in ran.scores.items() if len(runs) > 1 == len({run.key for run in runs.values()})]
    if not same:
        return []
    return [
        f"Nothing is random in these rows, each is one result with every seed, and no other seed would differ: "
        f"{', '.join(same)}. Where both rows of a claim are of them, its interval tells of the texts alone."
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
