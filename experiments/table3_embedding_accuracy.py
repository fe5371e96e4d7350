"""LEADRE's Table 3: are the ads that are nearest by embedding of the same category?

48 categories x 100 ads are the queries (the categories with the most ads; of a smaller one all its ads), and the
accuracy is the share of the Top-K ads by cosine that have the query's category, as a mean over a category's queries,
then over the categories. The pool is (a) the sampled ads or (b) the full catalog, the query left out; ties go by ad_id.
With 100 ads a category, 99 of the Top-100 can be right.

    python -m experiments.table3_embedding_accuracy                                   # the paper world, every encoder
    python -m experiments.table3_embedding_accuracy data=amazon_beauty data.root=PATH encoders=lsa,hashing
    python -m experiments.table3_embedding_accuracy category=first text=name seed=1
    python -m experiments.table3_embedding_accuracy encoders=hunyuan embedding.precision=bf16
    python -m experiments.table3_embedding_accuracy encoders=bge_m3 embedding.model=FOLDER

``text=name`` embeds the ads' names alone: the full description names the category itself. All other arguments are Hydra
overrides, those of ``embedding`` for every encoder that is named. Encoders that cannot be run, such as those whose
weights are not on this machine, are listed with the reason. The tables go to
``outputs/table3_embedding_accuracy/<time>/``.
"""

import json
import logging
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import polars as pl
from hydra import compose, initialize_config_dir
from numpy.typing import NDArray
from rich.console import Console
from safetensors.numpy import load_file

from experiments.table3_lines import KS, PAPER, POOLS, Line, Pool, Texts, grid, measured, references, write
from leadre import tables
from leadre.artifacts import ArtifactError, Result, Store
from leadre.config import CONF, ConfigError, RunConfig, check, load
from leadre.data.ad_text import describe
from leadre.data.fingerprint import fingerprint as fingerprint_data
from leadre.data.gather import gather
from leadre.embedding.config import TransformerConfig
from leadre.embedding.embed import embed
from leadre.embedding.fingerprint import fingerprint
from leadre.embedding.weights import available
from leadre.inspection import accuracy
from leadre.inspection.accuracy import Task
from leadre.job import quiet_libraries
from leadre.report.table import rich_table

VERSION = 1
NUM_CATEGORIES, NUM_ADS = 48, 100
OWN = ("encoders", "category", "text", "seed")
"""Arguments that are not Hydra's."""
NEEDS_MORE = ("transformer", "vectors")
"""Options of ``conf/embedding`` that are no encoder until one is named."""


class Choice(NamedTuple):
    """What is asked for on the command line; ``overrides`` are Hydra's."""

    encoders: tuple[str, ...]
    category: str
    text: str
    seed: int
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


def tasks(ads: pl.DataFrame, *, category: str, seed: int) -> dict[tuple[Pool, Texts], Task]:
    """Both pools, over all ads and over one ad a text; ``ads`` is sorted by ad_id.

    Raises:
        ValueError: If no category has two ads.
    """
    names = ads[f"{category}_category"]
    numbers = names.rank("dense").cast(pl.Int64).fill_null(0).to_numpy() - 1
    first = np.sort(np.unique(ads["description"].to_numpy(), return_index=True)[1])
    found: dict[tuple[Pool, Texts], Task] = {}
    for texts in get_args(Texts):
        rows = np.arange(ads.height) if texts == "all" else first
        generator = np.random.default_rng(seed)
        drawn = accuracy.sample(numbers[rows], categories=NUM_CATEGORIES, ads=NUM_ADS, generator=generator)
        queries = rows[drawn]
        if not len(queries):
            raise ValueError(
                f"{category}_category: no category has two ads, so there is nothing to find; use the other"
            )
        found |= {("sample", texts): Task(queries, queries, numbers), ("catalog", texts): Task(queries, rows, numbers)}
    return found


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


def config_of(overrides: Sequence[str], encoder: str) -> RunConfig:
    """The configuration with an encoder."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load(compose("index", [f"embedding={encoder}", *overrides]))


def table3(asked: Choice) -> tuple[dict[tuple[Pool, Texts], list[Line]], dict[str, str], dict[str, Any]]:
    """Run every encoder that can be run.

    Returns:
        The lines of each table; why each other encoder was not run; and what the tables were made from.
    """
    config = config_of(asked.overrides, asked.encoders[0])
    store = Store(Path(config.store.root))
    world = store.make("world", gather, config.data, source=fingerprint_data(config.data))
    if asked.text == "name":
        world = store.make("names", names_alone, None, world)
    ads = tables.read(tables.ADS, world.path / "ads.parquet").with_row_index("row").sort("ad_id")
    texts = ads["description"].rank("dense").to_numpy()
    asked_tasks = tasks(ads, category=asked.category, seed=asked.seed)
    lines: dict[tuple[Pool, Texts], list[Line]] = {key: [] for key in asked_tasks}
    not_run: dict[str, str] = {}
    controls: dict[tuple[Pool, Texts], list[Line]] = {}
    for encoder in asked.encoders:
        config = config_of(asked.overrides, encoder)
        try:
            if isinstance(config.embedding, TransformerConfig) and available(config.embedding) is None:
                raise ValueError(f"the weights of {config.embedding.model} are not on this machine")
            x = vectors(config, store, world)[ads["row"].to_numpy()]
        except (ArtifactError, OSError, ValueError) as error:  # the other encoders need not suffer
            not_run[encoder] = " ".join(str(error).split())
            continue
        for key, task in asked_tasks.items():
            neighbors = accuracy.found(task, x, most=KS[-1])
            lines[key].append(measured(encoder, task, neighbors, texts, seed=asked.seed))
            if key not in controls:
                controls[key] = references(task, neighbors, seed=asked.seed)
    if not controls:
        raise ValueError(f"none of the encoders can run: {'; '.join(not_run.values())}; use encoders=lsa,hashing")
    lines = {key: [*found, *controls[key]] for key, found in lines.items()}
    return lines, not_run, _told(asked, config, ads, asked_tasks)


def vectors(config: RunConfig, store: Store, world: Result) -> NDArray[np.float32]:
    """The embeddings of the world's ads, in its order."""
    made = store.make(
        "embeddings",
        embed,
        config.embedding,
        world,
        source=fingerprint(config.embedding),
        compute=config.compute,
        cache=store.root / "vectors",
    )
    x: NDArray[np.float32] = load_file(made.path / "vectors.safetensors")["x"]
    return x


def main(arguments: Sequence[str]) -> None:
    """Run all encoders, write the tables, and print the first one, and as the last line everything as JSON."""
    if {"-h", "--help"} & set(arguments):
        sys.stdout.write(f"{__doc__}\nencoders: {', '.join(encoders())}\n")
        return
    try:
        asked = choice(arguments)
        check_all(asked)
    except (ConfigError, ValueError) as error:
        sys.exit(str(error))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
    try:
        lines, not_run, told = table3(asked)
    except (ArtifactError, ValueError) as error:
        sys.exit(str(error))
    command = shlex.join(["python", "-m", "experiments.table3_embedding_accuracy", *arguments])
    folder = Path("outputs") / "table3_embedding_accuracy" / datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    write(folder, lines, not_run, told, command)
    console = Console(width=None if sys.stdout.isatty() else 180)
    for pool in POOLS:
        table = grid(lines[pool, "all"], paper=pool == "sample")
        console.print(rich_table(table, title=f"Top-K accuracy, %; pool: {POOLS[pool]}"))
    for name, reason in not_run.items():
        console.print(f"not run: {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    console.print(f"{folder}/table3.md, table3.csv, table3.png", highlight=False, soft_wrap=True)
    accuracies = {
        f"{pool}, {texts}": {
            line.name: [None if np.isnan(share) else round(float(share), 4) for share in line.mean] for line in table
        }
        for (pool, texts), table in lines.items()
    }
    sys.stdout.write(json.dumps({**told, "accuracy": accuracies, "not_run": not_run}) + "\n")


def _key_and_value(argument: str) -> tuple[str, str]:
    key, equals, value = argument.partition("=")
    if not equals or argument.startswith("-"):
        raise ValueError(f"{argument!r} is no key=value; --help tells what there is")
    return key, value


def _told(
    asked: Choice, config: RunConfig, ads: pl.DataFrame, made: Mapping[tuple[Pool, Texts], Task]
) -> dict[str, Any]:
    task = made["sample", "all"]
    return {
        "data": config.data.kind,
        "category": f"{asked.category}_category",
        "text": asked.text,
        "seed": asked.seed,
        "ads": ads.height,
        "texts": len(made["catalog", "distinct"].pool),
        "categories": len(np.unique(task.category[task.queries])),
        "queries": len(task.queries),
        "queries_distinct": len(made["sample", "distinct"].queries),
        "ads_a_category": NUM_ADS,
        "ads_without_category": int((task.category < 0).sum()),
    }


if __name__ == "__main__":
    main(sys.argv[1:])
