"""The scores of lists: equal to those of ranx and ir-measures, and of a million users in two seconds and little memory.

    python -m benchmarks.metrics            # every figure, within five minutes
    python -m benchmarks.metrics --quick    # fewer cases and users

Seconds are those of one thread on a CPU. Users have lists of ten ads of a catalog of 100,000, one clicked ad, and every
other one fifty labels of another retrieval strategy; all scores of ``conf/metrics/default.yaml`` are taken but Value@K,
which real logs do not have: it has a figure of its own, with the values of sixty ads, those that six systems list.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from benchmarks.measure import Figure, Setting, main, race

if TYPE_CHECKING:  # a measurement imports what it needs, so that a wrong option is told at once
    import numpy as np
    import polars as pl
    from numpy.typing import NDArray

    from leadre.metrics.config import MetricsConfig

CASES = 10_000
USERS = 1_000_000
FEW_USERS = 20_000
BLOCK = 1 << 15
"""Users scored at once, as the stage `scores` does."""
ADS = 100_000
CATEGORIES = 48
LENGTH = 10
LABELS = 50
APPRAISED = 60
CUTS = (1, 4, 8, 10)

PEAK = """
import sys
from pathlib import Path
from benchmarks.metrics import settings
from leadre.metrics.score import score

def kilobytes(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(what))

config, root = settings(), Path(sys.argv[1])
names = ("world", "catalog", "baselines", "ltr", "generations")
before = kilobytes("VmRSS")
score(config, *(root / name for name in names), out=root / "scores")
print(kilobytes("VmHWM") - before)
"""
"""Scores a folder of inputs in a process of its own and prints how much memory it took at the most, in kB."""


class Cases(NamedTuple):
    """Lists and truths ``(N, 12)`` and ``(N, 5)``, -1 where there is none, and the same as libraries take them."""

    lists: "NDArray[np.int64]"
    truths: "NDArray[np.int64]"
    run: dict[str, dict[str, float]]
    qrels: dict[str, dict[str, int]]


class Random(NamedTuple):
    """What the stage reads of a block of users: catalog rows, and what ads are worth."""

    lists: "NDArray[np.int32]"
    targets: "NDArray[np.int32]"
    labels: "NDArray[np.int32]"
    worths: "NDArray[np.float64]"
    appraised: "NDArray[np.int32]"
    values: "NDArray[np.float64]"


def parity(setting: Setting) -> Iterator[Figure]:
    """Each user's hit rate, NDCG and recall against those of the libraries, at four cuts.

    The cases have short and empty lists, places without an ad, ads that stand twice, and one to five truths of few ads.
    """
    count = CASES // 10 if setting.quick else CASES
    cases = random_cases(count, seed=0)
    ours = our_scores(cases)
    for name, theirs in (("ir-measures", by_ir_measures(cases)), ("ranx", by_ranx(cases))):
        most = max(float(abs(ours[metric] - theirs[metric]).max()) for metric in ours)
        note = f"{count:,} random users, {', '.join(sorted(ours))}"
        yield Figure(f"parity with {name}: most that a user's score differs", most, "<=", 1e-12, note)


def libraries(setting: Setting) -> Iterator[Figure]:
    """Means of the same scores, the libraries' dictionaries made before and not timed."""
    import ir_measures
    from ranx import Qrels, Run, evaluate

    names = [f"{metric}@{k}" for metric in ("hit_rate", "ndcg", "recall") for k in CUTS]
    measures = [measure @ k for measure in (ir_measures.Success, ir_measures.nDCG, ir_measures.R) for k in CUTS]
    given = random_cases(FEW_USERS // 10 if setting.quick else FEW_USERS, seed=1)
    run, qrels = Run(given.run), Qrels(given.qrels)

    def ours(cases: Cases) -> dict[str, float]:
        return {name: float(values.mean()) for name, values in our_scores(cases).items()}

    def ranx(_: Cases) -> dict[str, float]:
        found: dict[str, float] = evaluate(qrels, run, names, make_comparable=True)
        return found

    def trec(cases: Cases) -> dict[str, float]:
        found = ir_measures.calc_aggregate(measures, cases.qrels, cases.run)
        return {name: found[measure] for name, measure in zip(names, measures, strict=True)}

    def check(_: Cases, results: Mapping[str, Mapping[str, float]]) -> None:
        for theirs in ("ranx", "ir-measures"):
            assert all(abs(results["ours"][name] - results[theirs][name]) < 1e-12 for name in names), "scores differ"

    variants = {"ours": ours, "ranx": ranx, "ir-measures": trec}
    seconds = race(variants, lambda _: given, repeats=3, check=check)
    note = f"{len(given.lists):,} users, equal means"
    for theirs in ("ranx", "ir-measures"):
        yield Figure(f"twelve scores: {theirs} / ours", seconds[theirs] / seconds["ours"], ">=", 10, note)


def million(setting: Setting) -> Iterator[Figure]:
    """All scores and intervals of one system's lists of a million users, block by block, from catalog rows."""
    import numpy as np

    from leadre.metrics.ranking import find_worth, known_worth
    from leadre.metrics.score import Truth, measure
    from leadre.metrics.uncertainty import Tally

    config, draw = settings(), np.random.default_rng(0)
    categories = draw.integers(0, CATEGORIES, size=ADS, dtype=np.int32)
    tallies: dict[str, Tally] = {}
    count, taken, valued = -(-(USERS // 10 if setting.quick else USERS) // BLOCK), 0.0, 0.0
    for _ in range(count):
        block = random_block(draw)
        begin = time.process_time()
        truth = Truth(block.targets, known_worth(block.labels, block.worths), None)
        for name, values in measure(config, block.lists, truth, categories).items():
            tallies.setdefault(name, Tally()).add(values)
        taken += time.process_time() - begin
        begin = time.process_time()
        value = find_worth(block.lists, known_worth(block.appraised, block.values))
        for k in config.value_ks:
            Tally().add(value.mean_value(k))
        valued += time.process_time() - begin
    assert all(tally.scored + tally.unscored == count * BLOCK for tally in tallies.values()), "users are missing"
    begin = time.process_time()
    for tally in tallies.values():
        tally.interval(samples=config.bootstrap_samples, confidence=0.95, generator=np.random.default_rng(0))
    intervals = time.process_time() - begin
    note = f"{len(tallies)} scores a user" + (", scaled up" if setting.quick else "")
    each = USERS / (count * BLOCK)
    yield Figure("scores of 1,000,000 users: CPU-s", taken * each + intervals, "<=", 2, note + ", intervals too")
    yield Figure("Value@K of 1,000,000 users: CPU-s", valued * each, note=f"{APPRAISED} appraised ads a user")
    yield Figure("intervals alone: CPU-s", intervals, note=f"{config.bootstrap_samples:,} draws of a million users")


def stage(setting: Setting) -> Iterator[Figure]:
    """The stage `scores` with files read and written: LEADRE's lists and a baseline's, and how memory grows."""
    from leadre.metrics.score import score

    many = USERS // 5 if setting.quick else USERS
    peaks = {}
    for users in (many // 5, many):
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_inputs(root, users)
            told = subprocess.run(
                [sys.executable, "-c", PEAK, str(root)], check=True, capture_output=True, text=True
            ).stdout
            peaks[users] = int(told) / 1024
            begin = time.process_time()
            names = ("world", "catalog", "baselines", "ltr", "generations")
            score(settings(), *(root / name for name in names), out=root / "scores")
            taken = time.process_time() - begin
    note = f"{many:,} users, two systems, {many // 2 * LABELS:,} labels, ids as text"
    yield Figure("stage scores: CPU-s for 1,000,000 users", taken * USERS / many, note=note)
    yield Figure("stage scores: MB at the most", peaks[many], note="beside what libraries hold")
    more = peaks[many] - peaks[many // 5]
    yield Figure("stage scores: MB more than for a fifth of the users", more, "<=", 32, f"{many // 5:,} users")


def settings() -> "MetricsConfig":
    """The metrics of ``conf/metrics/default.yaml``."""
    from leadre.command_line import configured

    return configured(["metrics=default"]).metrics


def random_cases(count: int, *, seed: int) -> Cases:
    """Users that have everything the contract speaks of."""
    import numpy as np

    draw = np.random.default_rng(seed)
    lists = draw.integers(-1, 25, size=(count, 12))
    lists[np.arange(12) >= draw.integers(0, 13, size=(count, 1))] = -1
    truths = draw.integers(-1, 25, size=(count, 5))
    truths[np.arange(5) > draw.integers(0, 5, size=(count, 1))] = -1
    truths[:, 0] = abs(truths[:, 0])  # the libraries know no user without truths
    return Cases(lists, truths, *as_dictionaries(lists.tolist(), truths.tolist()))


def as_dictionaries(
    lists: list[list[int]], truths: list[list[int]]
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, int]]]:
    """What libraries take: scores of a user's documents, a place without an ad is one of its own; and what is good."""
    run, qrels = {}, {}
    for user, (ads, good) in enumerate(zip(lists, truths, strict=True)):
        places = dict.fromkeys(str(ad) if ad >= 0 else f"none{place}" for place, ad in enumerate(ads))
        if any(ad >= 0 for ad in ads):
            run[str(user)] = {ad: float(-place) for place, ad in enumerate(places)}
        qrels[str(user)] = {str(ad): 1 for ad in good if ad >= 0}
    return run, qrels


def our_scores(cases: Cases) -> "dict[str, NDArray[np.float64]]":
    """Each user's scores, by ranx's names."""
    from leadre.metrics.ranking import find

    found = find(cases.lists, cases.truths)
    metrics = {"hit_rate": found.hit_rate, "ndcg": found.ndcg, "recall": found.recall}
    return {f"{name}@{k}": metric(k) for name, metric in metrics.items() for k in CUTS}


def by_ir_measures(cases: Cases) -> "dict[str, NDArray[np.float64]]":
    """Each user's scores as ir-measures has them, by ranx's names."""
    import ir_measures
    import numpy as np

    measures = {"hit_rate": ir_measures.Success, "ndcg": ir_measures.nDCG, "recall": ir_measures.R}
    names = {str(measure @ k): f"{name}@{k}" for name, measure in measures.items() for k in CUTS}
    found = {name: np.full(len(cases.lists), np.nan) for name in names.values()}
    for told in ir_measures.iter_calc(
        [measure @ k for measure in measures.values() for k in CUTS], cases.qrels, cases.run
    ):
        found[names[str(told.measure)]][int(told.query_id)] = told.value
    return found


def by_ranx(cases: Cases) -> "dict[str, NDArray[np.float64]]":
    """Each user's scores as ranx has them."""
    import numpy as np
    from ranx import Qrels, Run, evaluate

    qrels = Qrels(cases.qrels)
    names = [f"{name}@{k}" for name in ("hit_rate", "ndcg", "recall") for k in CUTS]
    told = evaluate(qrels, Run(cases.run), names, make_comparable=True, return_mean=False)
    users = np.array([int(user) for user in qrels.keys()])  # noqa: SIM118  # Qrels is no dictionary
    return {name: told[name][np.argsort(users)] for name in names}


def random_block(draw: "np.random.Generator") -> Random:
    """A block of users, as the stage reads them from its tables."""
    import numpy as np

    def rows(width: int) -> "NDArray[np.int32]":
        first, step = draw.zipf(1.3, size=BLOCK) % ADS, draw.integers(1, 1000, size=BLOCK)
        return np.array([(first + place * step) % ADS for place in range(width)], dtype=np.int32).T

    lists, labels, targets, appraised = rows(LENGTH), rows(LABELS), rows(1), rows(APPRAISED)
    labels[draw.random(BLOCK) < 0.5] = -1
    some = np.flatnonzero(draw.random(BLOCK) < 0.3)
    targets[some, 0] = lists[some, draw.integers(0, LENGTH, size=len(some))]
    worths, values = (np.asfortranarray(draw.random(ads.shape)) for ads in (labels, appraised))
    return Random(lists, targets, labels, worths, appraised, values)


def write_inputs(root: Path, users: int) -> None:
    """Write what the stage `scores` reads."""
    import numpy as np
    import polars as pl

    from leadre import tables

    draw, parts = np.random.default_rng(0), "generations/lists"
    for name in ("world", "catalog", "baselines", "ltr", parts, "scores"):
        (root / name).mkdir(parents=True)
    ads = _ids("ad", np.arange(ADS))
    absent = dict.fromkeys(("name", "product_type", "second_category", "spu", "start_time", "end_time"))
    about = pl.DataFrame({"ad_id": ads, "first_category": _ids("c", draw.integers(0, CATEGORIES, size=ADS))})
    told = about.with_columns(pl.lit("").alias("description"), pl.lit([], pl.List(pl.String)).alias("attributes"))
    world = told.with_columns(pl.lit(None, tables.ADS.schema[name]).alias(name) for name in absent)
    tables.write(tables.ADS, world, root / "world/ads.parquet")
    sids = about.select("ad_id", pl.lit([0], pl.List(pl.Int32)).alias("sid"), pl.lit("").alias("name"))
    tables.write(tables.SIDS, sids, root / "catalog/sids.parquet")
    targets = _ids("ad", draw.zipf(1.3, size=users) % ADS)
    of_users = {
        "user_id": _ids("user", np.arange(users)),
        "role": ["test"] * users,
        "ad_id": targets,
        "time": [0] * users,
    }
    tables.write(tables.SPLIT, pl.DataFrame(of_users, schema=tables.SPLIT.schema), root / "world/split.parquet")
    for number, chosen in enumerate(np.array_split(np.arange(users), max(1, users // 50_000))):
        tables.write(tables.LISTS, _lists(draw, chosen, LENGTH), root / f"{parts}/part-{number:07d}.parquet")
    tables.write(tables.LISTS, _lists(draw, np.arange(users), LENGTH), root / "baselines/popularity.parquet")
    tables.write(tables.LISTS, _lists(draw, np.arange(0, users, 2), LABELS), root / "ltr/labels.parquet")


def _lists(draw: "np.random.Generator", users: "NDArray[np.int64]", length: int) -> "pl.DataFrame":
    import numpy as np
    import polars as pl

    from leadre import tables

    first, step = draw.zipf(1.3, size=(len(users), 1)) % ADS, draw.integers(1, 1000, size=(len(users), 1))
    columns: dict[str, Any] = {
        "user_id": _ids("user", np.repeat(users, length)),
        "rank": np.tile(np.arange(1, length + 1, dtype=np.int32), len(users)),
        "ad_id": _ids("ad", ((first + step * np.arange(length)) % ADS).ravel()),
        "score": draw.random(len(users) * length),
    }
    return pl.DataFrame(columns, schema=tables.LISTS.schema)


def _ids(kind: str, numbers: "NDArray[np.int64]") -> "pl.Series":
    import polars as pl

    return f"{kind}_" + pl.Series(numbers).cast(pl.String()).str.zfill(7)


MEASUREMENTS = (parity, libraries, million, stage)

if __name__ == "__main__":
    sys.exit(main(MEASUREMENTS))
